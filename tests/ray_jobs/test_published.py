"""Published weights as the beginning of a curriculum: taken as they are, or refused with file, key and shape."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.steps import refuse_early
from infra.registry import ModelRegistry
from infra.store import model_store
from model import UniMedVL
from model.checkpoint import open_weights
from model.config import ModelConfig
from model.curriculum import BOOTSTRAP, CHAMPION, TrainingParams
from model.testing import make_tiny
from model.weights import CheckpointError
from ray_jobs import published
from ray_jobs.checkpoint_source import identify
from ray_jobs.checkpoints import fetch_folder
from ray_jobs.params import Params
from ray_jobs.place import alone
from ray_jobs.train import starting_network
from tests.ray_jobs.training_runs import STAGE

SMALL = ModelConfig(llm={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}, vit={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2})


@pytest.fixture
def folder(tmp_path):
    """As BAGEL was published: no file of ours, others that are not read, and another bookkeeping of the sizes."""
    made = make_tiny(tmp_path / "published", config=SMALL)
    (made / "unimedvl_config.json").unlink()
    (made / "README.md").write_text("weights")
    (made / "config.json").write_text('{"architectures": ["Other"]}')
    (made / "model.safetensors").write_bytes(b"of another loader")
    settle(made / "llm_config.json", {"attention_dropout": 0.0, "max_position_embeddings": 1024})
    return made


def settle(path, change):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def edit(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def take(address, config=SMALL, again=False) -> dict:
    """The record of the starting checkpoint, as the job makes it."""
    told = {"files": identify(str(address)), "address": str(address), "again": again}
    return published.run({"model": config.model_dump(mode="json"), "checkpoint": told})


def written(record) -> dict[str, str]:
    return {entry.key.removeprefix(record["prefix"] + "/"): entry.etag for entry in model_store().list(record["prefix"])}


def same_weights(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_stage_begins_with_the_published_weights(s3, folder):
    config = SMALL.model_copy(update={"timestep_shift": 3.0})
    record = take(folder, config)
    network = starting_network(fetch_folder(record), TrainingParams(workers=1), alone())
    expected = make_tiny(folder.parent / "whole", config=SMALL)
    assert same_weights(network, UniMedVL.from_pretrained(expected))
    # What the folder does not say is the profile's; what it says more is kept.
    assert network.config.timestep_shift == 3.0 and network.config.image == SMALL.image
    assert network.config.llm.max_position_embeddings == 1024 and network.config.llm.attention_dropout == 0.0
    assert network.tokenizer.encode("CT") and record["steps"] == 0
    assert set(written(record)) == {"ae.safetensors", "config.json", "ema.safetensors", "llm_config.json", "tokenizer.json", "unimedvl_config.json", "vit_config.json"}


def test_the_same_content_is_the_same_start_wherever_it_lies(s3, folder, tmp_path, monkeypatch):
    record = take(folder)
    moved = folder.rename(tmp_path / "moved")
    # What an attempt that was killed has not sent is sent; the rest stays as it is.
    model_store().delete(f"{record['prefix']}/ae.safetensors")
    sent, upload = [], type(model_store()).upload_file
    monkeypatch.setattr("infra.store.ObjectStore.upload_file", lambda store, path, key, *told: (sent.append(path.name), upload(store, path, key, *told)))
    assert take(moved) == record and sent == ["ae.safetensors"]
    assert take(moved) == record and sent == ["ae.safetensors"]
    assert take(moved, again=True) == record and len(sent) == 1 + 7
    for path in moved.iterdir():
        model_store().upload_file(path, f"published/small/{path.name}")
    assert take(f"s3://{model_store().bucket}/published/small") == record


def test_a_model_version_can_be_a_start(s3, folder):
    version = ModelRegistry().publish(make_tiny(folder.parent / "ours", config=SMALL), {}).id
    ModelRegistry().add_record(version, "gate", {})
    for address in (f"s3://{model_store().bucket}/versions/{version}", ModelRegistry().fetch(version)):
        assert same_weights(UniMedVL.from_pretrained(fetch_folder(take(address))), UniMedVL.from_pretrained(folder.parent / "ours"))
    (folder / "manifest.json").write_text("{}")
    assert "manifest.json" not in written(take(folder))


def test_other_content_is_another_start(s3, folder):
    record, known = take(folder), identify(str(folder))
    edit(folder / "ema.safetensors", lambda t: t["connector.fc1.bias"].add_(1))
    changed = identify(str(folder))
    assert [name for name in changed if changed[name] != known[name]] == ["ema.safetensors"]
    with pytest.raises(CheckpointError, match="has changed since"):
        published.run({"model": SMALL.model_dump(mode="json"), "checkpoint": {"files": known, "address": str(folder), "again": False}})
    assert take(folder)["prefix"] != record["prefix"]


def test_a_file_that_has_not_changed_is_read_once(s3, folder, monkeypatch):
    known, read = identify(str(folder)), []
    monkeypatch.setattr("infra.checksums._sha256", lambda path, on_bytes: read.append(path.name) or "0")
    assert identify(str(folder)) == known and read == []
    os.utime(folder / "config.json")
    assert identify(str(folder))["config.json"] == "0" and read == ["config.json"]


def test_shards_are_taken_with_their_index(s3, folder):
    tensors = load_file(folder / "ema.safetensors")
    index = {key: f"model-0000{1 + (key > 'm')}.safetensors" for key in tensors}
    for name in set(index.values()):
        save_file({key: t for key, t in tensors.items() if index[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "ema.safetensors").unlink()
    record = take(folder)
    assert {name for name in written(record) if ".safetensors" in name} == {"ae.safetensors", "model.safetensors.index.json", *index.values()}
    main, _ = open_weights(fetch_folder(record))
    assert main.shapes.keys() == tensors.keys()


def test_special_tokens_are_added_as_the_reference_adds_them(s3, folder):
    """A tokenizer without them gets ids behind its own, and the embeddings rows for these."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["CT"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    edit(folder / "ema.safetensors", lambda t: t.update({f"language_model.{key}.weight": t[f"language_model.{key}.weight"][:size].clone() for key in ("model.embed_tokens", "lm_head")}))
    settle(folder / "llm_config.json", {"vocab_size": size})
    network = starting_network(fetch_folder(take(folder)), TrainingParams(workers=1), alone())
    assert list(network.config.special_tokens.model_dump().values()) == list(range(size, size + 4)) and len(network.language_model.lm_head.weight) == size + 4


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda f: edit(f / "ema.safetensors", lambda t: t.pop("connector.fc1.bias")), r"ema.safetensors: missing connector.fc1.bias \[32\]"),
        (lambda f: edit(f / "ema.safetensors", lambda t: t.update(extra=torch.zeros(3))), r"ema.safetensors: unexpected extra \[3\]"),
        (lambda f: edit(f / "ae.safetensors", lambda t: t.update({"encoder.conv_in.bias": torch.zeros(9)})), r"ae.safetensors: encoder.conv_in.bias has shape \[9\], the configuration needs \[8\]"),
        (lambda f: (f / "ema.safetensors").write_bytes((f / "ema.safetensors").read_bytes()[:-100]), "ema.safetensors is not a whole safetensors file: it ends inside"),
        (lambda f: (f / "ae.safetensors").unlink(), "ae.safetensors is missing"),
        (lambda f: (f / "ema.safetensors").write_bytes(pickle.dumps({"weight": 1})), "ema.safetensors is a pickle, which is never read"),
        (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer: put tokenizer.json there"),
        (lambda f: (f / "llm_config.json").unlink(), "llm_config.json is missing"),
        (lambda f: settle(f / "llm_config.json", {"num_hidden_layers": 3}), "model.llm.num_hidden_layers is 3 in the folder, 2 in the profile"),
        (lambda f: settle(f / "llm_config.json", {"rope_theta": 10.0}), "model.llm.rope_theta is 10.0 in the folder, 1000000.0 in the profile"),
        (lambda f: settle(f / "vit_config.json", {"intermediate_size": 64}), "model.vit.intermediate_size is 64 in the folder, 48 in the profile"),
    ],
)
def test_what_is_no_such_network_is_refused_before_anything_starts(s3, folder, damage, told):
    damage(folder)
    with pytest.raises(CheckpointError, match=told):
        refuse_early(profile(folder), [STAGE], BOOTSTRAP)
    before = list(model_store().list("stages/"))
    with pytest.raises(CheckpointError, match=told):
        take(folder)
    assert list(model_store().list("stages/")) == before


def test_a_place_with_nothing_is_told_with_its_mend(s3, tmp_path):
    for address, told in ((str(tmp_path / "absent"), "absent is no folder on .*`bootstrap.checkpoint`"), (f"s3://{model_store().bucket}/published/none", "nothing lies under s3://.*/published/none: copy the published folder there .*aws s3 cp")):
        with pytest.raises(CheckpointError, match=told):
            refuse_early(profile(address), [STAGE], BOOTSTRAP)
        # Where no stage begins with it, nobody needs it.
        refuse_early(profile(address), [STAGE], CHAMPION)


def profile(address) -> Params:
    return Params(model=SMALL, bootstrap={"checkpoint": str(address)}, curriculum=[STAGE])
