"""Scorers of picture and caption by networks, with random weights: that they run, are pluggable by name, and depend on the pair alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from corpus import quality
from corpus.params import QualityParams
from corpus.words import Words
from model.testing import make_tiny
from ray_jobs import alignment
from tests.corpus.test_releases import SALT, record


@pytest.fixture(scope="module")
def pairs():
    return [quality.examine(record(n, turns=()), QualityParams(), SALT)[0] for n in range(8)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a CLIP model, very small."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)] + ["."]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=64).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(text_config=size | ends | {"vocab_size": len(words)}, vision_config=size | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def test_a_clip_folder_is_a_scorer(clip, pairs):
    scorer = alignment.scorer(str(clip))(pairs)
    values = scorer.score(pairs)
    assert values.shape == (8, 2) and np.isfinite(values).all() and (abs(values) <= 1.001).all()
    np.testing.assert_allclose(scorer.score(pairs[3:4]), values[3:4], atol=1e-5)
    assert scorer.name == alignment.scorer(str(clip))(pairs).name != alignment.scorer(str(clip))(pairs[:4]).name
    alone = [replace(pair, patient="one") for pair in pairs]
    assert np.isnan(alignment.scorer(str(clip))(alone).score(alone)).all()


def test_the_champions_encoders_are_a_scorer(tmp_path, pairs):
    scorer = alignment.Champion("m-1", make_tiny(tmp_path))
    values = scorer.score(pairs[:2])
    assert scorer.name == "champion-m-1" and values.shape == (2, 2) and (abs(values) <= 1.001).all()


def test_names_of_scorers(s3, pairs):
    assert isinstance(alignment.scorer("words")(pairs), Words) and isinstance(alignment.scorer("champion")(pairs), Words)
    with pytest.raises(ValueError, match="words, champion, or a folder"):
        alignment.scorer("no/such/folder")
