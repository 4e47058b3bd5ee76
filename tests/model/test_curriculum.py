"""The curriculum as data: rates by step, the graph of stages, what the optimiser and the running average do; numbers are worked out by hand."""

import pytest
import torch

from model.curriculum import BOOTSTRAP, CHAMPION, StageParams, check_graph, starts
from model.optimisation import EMA, make_optimiser

STAGE = StageParams(name="one", steps=16, mixture={"text": 1}, learning_rate=0.8, min_learning_rate=0.2, warmup_steps=4)


def at(schedule: str, *steps: int, **changes) -> list[float]:
    stage = STAGE.model_copy(update={"schedule": schedule, **changes})
    return [stage.learning_rate_at(step) for step in steps]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_a_rate_warms_up_in_equal_steps(schedule):
    assert at(schedule, 0, 1, 2, 3, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert at(schedule, 0, warmup_steps=0) == [0.8]
    assert at(schedule, 0, 8, 15, warmup_steps=16) == pytest.approx([0.05, 0.45, 0.8])


def test_a_cosine_falls_to_the_least_rate():
    """After a third, a half and two thirds of the way: cos 60°, 90° and 120°. The last step is one before the least."""
    assert at("cosine", 8, 10, 12, 16) == pytest.approx([0.65, 0.5, 0.35, 0.2])
    assert 0.2 < at("cosine", 15)[0] < 0.22


def test_a_line_falls_to_the_least_rate():
    assert at("linear", 7, 10, 13, 15, 16) == pytest.approx([0.65, 0.5, 0.35, 0.25, 0.2])
    assert at("linear", 0, 1, 2, 3, steps=4, warmup_steps=0, min_learning_rate=0.0) == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_a_constant_rate_knows_no_least():
    assert at("constant", 4, 10, 15) == [0.8] * 3


def test_an_optimiser_has_the_released_codes_constants():
    (group,) = make_optimiser({"weight": torch.nn.Parameter(torch.ones(2))}, STAGE).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-15, 0.0)


def test_an_average_forgets_where_it_began():
    """Decays of 1/10, 2/11, … until they reach the stage's; without the warm-up it is the stage's from the first step on."""
    weight = torch.nn.Parameter(torch.zeros(1))
    warm, cold = EMA({"weight": weight}, 0.5), EMA({"weight": weight}, 0.5, warm_up=False)
    for step, value, wanted in ((0, 1.0, 0.9), (1, 2.0, 1.8), (8, 0.0, 0.9), (1000, 0.0, 0.45)):
        weight.data.fill_(value)
        warm.update(step)
        assert warm.average["weight"].item() == pytest.approx(wanted)
    weight.data.fill_(1.0)
    cold.update(0)
    assert cold.average["weight"].item() == 0.5


def graph(*named: tuple[str, str | None], first: str = BOOTSTRAP) -> list[str]:
    stages = [STAGE.model_copy(update={"name": name, "start": start}) for name, start in named]
    check_graph(stages, first)
    return starts(stages, first)


def test_stages_are_added_and_branched():
    assert graph(("a", None), ("b", None), ("c", "a"), ("d", None), ("e", BOOTSTRAP), ("f", CHAMPION)) == [BOOTSTRAP, "a", "a", "c", BOOTSTRAP, CHAMPION]
    assert graph(("a", None), ("b", None), first=CHAMPION) == [CHAMPION, "a"]


@pytest.mark.parametrize("named, told", [
    ((("a", "typo"),), r"'a' starts from 'typo', which is none of \['bootstrap', 'champion'\]"),
    ((("a", "a"),), "'a' starts from 'a'"),
    ((("a", "b"), ("b", None)), "'a' starts from 'b', which is none of"),
    ((("a", None), ("b", None), ("a", None)), "'a' is taken"),
    (((BOOTSTRAP, None),), "'bootstrap' is taken"),
    (((CHAMPION, None),), "'champion' is taken"),
])  # fmt: skip
def test_what_is_no_graph_of_stages_is_refused(named, told):
    with pytest.raises(ValueError, match=told):
        graph(*named)
