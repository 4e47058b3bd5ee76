"""A refresh of the champion that is run again after its result has been promoted."""

import pytest

from flows import steps
from infra.registry import ModelRegistry
from model.curriculum import CHAMPION
from ray_jobs.checkpoints import publish_folder
from ray_jobs.params import load_params

EARLIER, LATER, LATEST = (f"corpus/2000-01-0{day}.1" for day in (1, 2, 3))


@pytest.fixture
def registry(s3):
    """Without a champion, before and after."""
    registry = ModelRegistry()
    known = {version.id for version in registry.list()}
    assert registry.alias("champion") is None
    yield registry
    for name in ("candidate", "champion", "previous"):
        registry.store.delete(f"aliases/{name}.json")
    for version in {version.id for version in registry.list()} - known:
        registry.store.delete_dir(f"versions/{version}/")


@pytest.fixture
def weights(tmp_path):
    """Makes a folder of weights."""

    def make(name: str):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ema.safetensors").write_text(name)
        return tmp_path / name

    return make


def test_a_refresh_that_was_promoted_and_run_again_has_nothing_to_train(s3, registry, weights, monkeypatch):
    """As where it was killed behind the promotion, or its deployment failed: it is not begun anew with its own result."""
    params, begun = load_params(s3.params_file), []
    trained = publish_folder(weights("refreshed"), "refresh") | {"stage": "refresh"}
    monkeypatch.setattr(steps, "train_stage", lambda params, stage, release, start, known_release, *rest: begun.append((start["version"], known_release)) or trained)

    def refresh(tag: str, force: bool = False) -> str:
        """The candidate, which is promoted."""
        release = {"tag": tag, "dvc_hash": "0", "corpus_commit": "0"}
        stages = steps.train_curriculum(params, params.refresh_curriculum, release, CHAMPION, force, print)
        candidate = steps.register.fn(params, release, stages, "by hand")
        registry.promote(candidate)
        return candidate

    parent = registry.publish(weights("parent"), {"release": EARLIER}).id
    registry.promote(parent)
    heir = refresh(LATER)
    refresh(LATER)
    assert begun == [(parent, EARLIER)] * 2
    refresh(LATER, force=True)
    refresh(LATEST)
    assert begun[2:] == [(heir, LATER)] * 2


def test_a_promotion_that_was_killed_half_way_is_finished_when_it_is_asked_for_again(s3, registry, weights, monkeypatch):
    """Else the way back from the new champion would lead to none, or past the one before it."""
    first, second = (registry.publish(weights(name), {}).id for name in ("first", "second"))
    registry.promote(first)

    def killed(self, name, version):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ModelRegistry, "_point", killed)
        registry.promote(second)
    assert registry.aliases()["champion"] == second and registry.aliases().get("previous") != first
    registry.promote(second)
    assert registry.rollback().version == first and registry.aliases()["previous"] == second
