"""The first losses of the tiny curriculum are the ones they were. Whoever changes them says why in the commit that does."""

import pytest
import torch

from corpus.phantoms import mini
from corpus.reader import ReleaseReader
from corpus.shard_cache import ShardCache
from infra.store import corpus_store, model_store
from model.curriculum import TrainingParams
from model.testing import make_tiny
from ray_jobs.loader import Loader
from ray_jobs.params import find_profile, load_params
from ray_jobs.place import alone
from ray_jobs.plans import Planner
from ray_jobs.stage_checkpoints import StageCheckpoints
from ray_jobs.stage_loop import StageRun
from ray_jobs.train import starting_network
from tests.ray_jobs.made_release import publish
from tests.ray_jobs.training_runs import NoticeAt, Told

STEPS = 20
# Cross-entropy and velocity loss of each step, from the untrained network of `make_tiny`.
CE = (6.502, 6.030, 5.405, 4.731, 4.443, 3.913, 3.647, 3.389, 3.512, 3.474, 2.979, 2.816, 2.527, 2.079, 1.729, 1.634, 1.332, 1.273, 1.141, 1.086)
MSE = (1.148, 1.295, 1.193, 1.084, 1.116, 1.185, 1.183, 1.135, 1.094, 1.094, 1.078, 1.105, 1.001, 1.000, 0.981, 0.958, 0.886, 0.814, 0.896, 0.760)


def test_the_first_losses_are_what_they_were(s3, tmp_path):
    params = load_params(find_profile("tiny"))
    stage = params.curriculum[0].model_copy(update={"evaluate_every": None})
    training = TrainingParams(workers=1, streams=2, log_every=1, checkpoint_every=10**6)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    model = starting_network(make_tiny(tmp_path / "tiny"), training, alone())
    release = publish(mini.samples(params.corpus.phantoms, b"salt"), corpus_store(), rows=200)
    reader = ReleaseReader(release, ShardCache(corpus_store(), tmp_path / "cache"))
    loader = Loader(reader, Planner(model, stage), stage, params.seed, [0, 1], 2)
    checkpoints = StageCheckpoints("identical", model_store(), alone(), tmp_path / "scratch")
    told = Told()
    StageRun(model, loader, stage, training, params.seed, alone(), checkpoints, told, NoticeAt(STEPS), lambda: model, under_ray=False).run()
    # Another processor rounds otherwise, and twenty steps of Adam make that more.
    assert [row["ce"] for row in told.rows] == pytest.approx(CE, rel=1e-2)
    assert [row["mse"] for row in told.rows] == pytest.approx(MSE, rel=1e-2)
