"""The profile `unimedvl-14b` is the paper's curriculum: Table 12 and what A.1.1 says of all stages."""

import re

import pytest

from model.curriculum import PARTS
from ray_jobs.params import find_profile, load_params

PROFILE = find_profile("unimedvl-14b")
# Steps, learning rate, text / generation / understanding / interleaved as printed, tokens a sample, VAE and ViT sides, what is frozen.
TABLE_12 = {
    "foundation": (85_000, 5e-5, {"text": 5, "generation": 25, "understanding": 75}, 18_500, (512, 1024), (378, 980), set()),
    "instruction": (120_000, 2.5e-5, {"text": 5, "generation": 45, "understanding": 40, "interleaved": 10}, 20_000, (512, 1024), (224, 518), {"vit"}),
    "unified": (70_000, 1e-5, {"text": 3, "generation": 35, "understanding": 37, "interleaved": 25}, 27_000, (32, 1024), (378, 980), {"vit"}),
}


def test_the_published_profile_is_table_12():
    stages = load_params(PROFILE).curriculum
    told = {s.name: (s.steps, s.learning_rate, s.mixture, s.tokens_per_sample, s.resolution.vae, s.resolution.vit, set(PARTS) - set(s.trainable)) for s in stages}
    assert told == TABLE_12 and list(told) == list(TABLE_12)
    for stage in stages:
        assert (stage.ce_weight, stage.mse_weight, stage.ema_decay) == (0.25, 1.0, 0.995)
        assert (stage.dropout.text, stage.dropout.vit, stage.dropout.vae) == (0.3, 0.05, 0.05)
        # The released code's, as the paper does not tell them.
        assert (stage.schedule, stage.warmup_steps, stage.min_learning_rate, stage.max_grad_norm) == ("constant", 2000, 1e-7, 1.0)
        assert stage.start is None and stage.tokens_per_pack >= stage.tokens_per_sample


def test_shares_that_do_not_sum_to_100_are_normalised():
    foundation = load_params(PROFILE).curriculum[0]
    assert sum(foundation.mixture.values()) == 105 and foundation.shares == pytest.approx({"text": 5 / 105, "generation": 25 / 105, "understanding": 75 / 105})


def test_every_number_of_the_profile_is_marked():
    """On its line, or at the head of its section."""
    mark, number, unmarked, covered = re.compile(r"\[[PCX]\]"), re.compile(r"(?<![\w-])\d"), [], False
    for line in PROFILE.read_text().splitlines():
        code, _, comment = line.partition("#")
        if code and not code.startswith(" "):
            covered = bool(mark.search(comment))
        if number.search(code) and not covered and not mark.search(comment):
            unmarked.append(line)
    assert not unmarked
