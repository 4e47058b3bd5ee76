"""What a stage survives: each fault is caused, and what goes on is compared with the undisturbed run."""

import json
import shutil
import threading
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bench import trainer_slice
from flows import steps
from infra import outage
from infra.jobs import JobCancelled, JobOutcome
from infra.store import ObjectStore, StoreUnavailable, corpus_store, log_store, model_store
from model import UniMedVL
from model.checkpoint import open_weights
from model.config import ModelConfig
from model.curriculum import AnomalyParams, StageParams
from model.packing import TextItem, pack
from model.testing import make_tiny
from ray_jobs.checkpoints import fetch_folder, publish_folder
from ray_jobs.meter import Meter
from ray_jobs.params import load_params
from ray_jobs.place import alone
from ray_jobs.run_log import RunLog
from ray_jobs.runs import samples_of
from ray_jobs.stage_checkpoints import COMMIT, DamagedCheckpoint, StageCheckpoints, checkpoints_prefix, committed
from ray_jobs.stage_export import export_average
from ray_jobs.train import CannotGoOn, forget_run, take_up, train, work_on
from ray_jobs.watchdog import Watchdog
from tests.ray_jobs.made_release import publish, sample
from tests.ray_jobs.outage import Wire, files_at_most
from tests.ray_jobs.training_runs import BAD, STAGE, TRAINING, MadePacks, NoticeAt, learned, same, start


@pytest.fixture(scope="module")
def tiny(s3, tmp_path_factory):
    small = ModelConfig(llm={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}, vit={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2})
    return make_tiny(tmp_path_factory.mktemp("tiny"), config=small)


@pytest.fixture(scope="module")
def undisturbed(tiny, s3, tmp_path_factory):
    run, _ = start(tiny, "undisturbed", tmp_path_factory.mktemp("scratch"))
    assert run.run() == "finished"
    return learned(run), run.progress.history


class Flat:
    """A validation that finds these losses, one after the other."""

    def __init__(self, losses: list[float]):
        self.losses = iter(losses)

    def loss(self, stepper) -> dict[str, float]:
        return {"loss": next(self.losses), "ce": 1.0, "mse": 1.0}

    def look(self, stepper) -> tuple[dict[str, float], None]:
        return {"vqa/mini": 0.25}, None


def in_store(name: str) -> list[str]:
    return committed(model_store(), checkpoints_prefix(name))


def test_a_stopped_run_goes_on_to_the_same_bits(tiny, undisturbed, tmp_path):
    first, told = start(tiny, "stopped", tmp_path, notice=NoticeAt(7))
    assert first.run() == "stopped" and first.progress.step == 7
    assert in_store("stopped")[0].startswith("00000007") and told.kinds() == ["stopped"]
    second, told = start(tiny, "stopped", tmp_path)
    assert second.run() == "finished" and told.events[0][:2] == (7, "resumed")
    assert same(learned(second), undisturbed[0]) and second.progress.history == undisturbed[1]
    assert not list(tmp_path.rglob("*.safetensors")), "nothing stays on this machine"


def test_a_run_that_vanished_repeats_its_last_steps(tiny, undisturbed, tmp_path):
    """As after SIGKILL: nothing is said or saved at the end."""
    first, _ = start(tiny, "vanished", tmp_path)
    first._resume()
    first.meter = Meter(first.stepper.model.config, STAGE, first.place, 0.0)
    for _ in range(6):
        batch = next(first.loader)
        first.meter.loaded(batch)
        first.meter.stepped(first.stepper.step(batch.packs))
        first._after(first.progress.step, stop=False)
    first.checkpoints.wait()
    second, told = start(tiny, "vanished", tmp_path)
    assert second.run() == "finished" and told.events[0][:2] == (4, "resumed")
    assert same(learned(second), undisturbed[0]) and second.progress.history == undisturbed[1]


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tiny, undisturbed, tmp_path):
    first, _ = start(tiny, "damaged", tmp_path, notice=NoticeAt(9))
    first.run()
    newest = in_store("damaged")[0]
    key = next(e.key for e in model_store().list(f"{checkpoints_prefix('damaged')}{newest}/") if e.key.endswith(".safetensors"))
    data = bytearray(model_store().get(key))
    data[len(data) // 2] ^= 1
    model_store().put(key, bytes(data))
    second, told = start(tiny, "damaged", tmp_path)
    assert second.run() == "finished" and told.kinds()[:2] == ["corrupt-checkpoint", "resumed"]
    assert told.events[0][0] == 9 and key in told.events[0][2] and told.events[1][0] == 8
    assert same(learned(second), undisturbed[0]) and second.progress.history == undisturbed[1]


def kept_by(run: str, folder, keep: int = 2) -> tuple[StageCheckpoints, list[str]]:
    """Checkpoints of a run that has but one number, and the kinds of what they tell."""
    kinds = []
    return StageCheckpoints(run, model_store(), alone(), folder, keep, 0.01, lambda step, kind, detail: kinds.append(kind)), kinds


def save(checkpoints: StageCheckpoints, step: int) -> None:
    checkpoints.save(step, {"weights/one": torch.full((3,), float(step))}, {"step": step}, {})
    assert checkpoints.wait()


def step_in(checkpoints: StageCheckpoints) -> int | None:
    """The step that is gone on from."""
    found = checkpoints.load({"weights/one": torch.zeros(3)})
    return found[0]["step"] if found else None


def spoil(run: str, name: str, file: str, data: bytes) -> None:
    model_store().put(f"{checkpoints_prefix(run)}{name}/{file}", data)


NAMES = ("../../escaped", "a\0b", "x" * 2000, "")


@pytest.mark.parametrize("data", [b"", b'{"step": 20, "fil', b'{"step": 20, "at": "x"}', b'{"files": {}, "at": "x"}', b"[]", b"\xff\xfe\x00", *(json.dumps({"files": {"state.json": {}, name: {}}, "at": "x"}).encode() for name in NAMES)])
def test_a_damaged_marker_is_told_and_the_checkpoint_before_is_taken(s3, tmp_path, data):
    first, _ = kept_by("marker", tmp_path / "a")
    save(first, 10)
    save(first, 20)
    spoil("marker", in_store("marker")[0], "commit.json", data)
    # A second attempt has written the same step: which was later is asked of both markers.
    again, kinds = kept_by("marker", tmp_path / "b", keep=3)
    save(again, 20)
    newest = in_store("marker")[0]
    spoil("marker", newest, "commit.json", data)
    assert step_in(again) == 10 and kinds == ["corrupt-checkpoint"] * 2
    assert model_store().get(f"{checkpoints_prefix('marker')}{newest}/damaged.json") == data
    model_store().delete_dir(checkpoints_prefix("marker"))


def test_a_damaged_checkpoint_takes_no_good_ones_place(s3, tmp_path):
    checkpoints, kinds = kept_by("aside", tmp_path, keep=1)
    save(checkpoints, 20)
    spoil("aside", in_store("aside")[0], "state.json", b"{")
    assert step_in(checkpoints) is None and kinds == ["corrupt-checkpoint", "no-checkpoint-left"]
    for step in (5, 10):
        save(checkpoints, step)
        assert [name.split("-")[0] for name in in_store("aside")] == [f"{step:08d}"]
    assert step_in(checkpoints) == 10


def test_what_is_wrong_with_the_machine_or_the_store_is_no_damaged_checkpoint(s3, tmp_path, monkeypatch):
    checkpoints, kinds = kept_by("unread", tmp_path)
    save(checkpoints, 10)
    for trouble in (OSError(28, "No space left on device"), StoreUnavailable("the object store does not answer")):
        def refuse(self, key, path, trouble=trouble):
            raise trouble

        with monkeypatch.context() as patched, pytest.raises(type(trouble)):
            patched.setattr("infra.store.ObjectStore.download_file", refuse)
            step_in(checkpoints)
    assert kinds == ["checkpoint-unread"] * 2 and step_in(checkpoints) == 10


def test_what_a_stage_begins_with_is_fetched_anew_where_it_was_cut(tiny, s3):
    """Whoever learned from it, or published it as a version, would take what is left for the weights."""
    record = publish_folder(tiny, "cut")
    with open(fetch_folder(record) / "ema.safetensors", "r+b") as file:
        file.truncate(5000)
    assert (fetch_folder(record) / "ema.safetensors").read_bytes() == (tiny / "ema.safetensors").read_bytes()


def test_without_room_for_what_a_stage_begins_with_the_folder_is_told(tiny, s3):
    """And once there is room, it is fetched as if nothing had been."""
    record = publish_folder(tiny, "roomless")
    shutil.rmtree(fetch_folder(record))
    with files_at_most(2**14), pytest.raises(OSError, match=f"too large: '.*/cache/stages/.{record['content_hash']}'"):
        fetch_folder(record)
    assert (fetch_folder(record) / "ema.safetensors").read_bytes() == (tiny / "ema.safetensors").read_bytes()


def stage_of_texts(tiny, source: str = "made") -> dict:
    """Inputs of a job whose stage has the name of its source."""
    text = StageParams(**STAGE.model_dump() | {"name": source, "mixture": {"text": 1}})
    release = publish([sample(n, "text", source=source) for n in range(8)], corpus_store(), tag="corpus/2000-03-03.1")
    corpus_store().put_json("releases/2000-03-03.1.json", release)
    return {"release": release["tag"], "start": publish_folder(tiny, "silent"), "stage": text.model_dump(mode="json"), "training": TRAINING.model_dump(mode="json"), "seed": 5}


def test_a_store_that_is_silent_while_a_stage_begins_is_waited_for(tiny, s3, tmp_path, monkeypatch):
    """Whatever is asked for is not answered at first: the start's files, the release's record, the run's checkpoints."""
    inputs = stage_of_texts(tiny)
    asked = set()

    def at_first_silent(real):
        def ask(self, key, *rest, **more):
            if (real, key) not in asked:
                asked.add((real, key))
                raise StoreUnavailable("the object store does not answer")
            return real(self, key, *rest, **more)

        return ask

    for name in ("get_with_etag", "list", "download_file", "upload_file", "put"):
        monkeypatch.setattr(ObjectStore, name, at_first_silent(getattr(ObjectStore, name)))
    monkeypatch.setattr(outage, "PAUSE_S", 0.01)
    log = RunLog("silent")
    assert work_on(inputs, "silent", alone(), log, NoticeAt(1), tmp_path, under_ray=False) == "stopped"
    log.close()
    assert any(key == "releases/2000-03-03.1.json" for _, key in asked)


def test_what_no_worker_can_mend_is_not_tried_again_until_it_is_asked_for(tiny, s3, tmp_path, monkeypatch):
    """A shard vanishes; the workers are started again as Ray Train does it, whatever has ended them."""
    inputs, ended_by = stage_of_texts(tiny, "vanishing"), []

    def fit(inputs: dict, run: str) -> None:
        for _ in range(TRAINING.max_failures):
            log = RunLog(run)
            try:
                return work_on(inputs, run, alone(), log, NoticeAt(1), tmp_path, under_ray=False)
            except Exception as error:
                ended_by.append(error)
            finally:
                log.close()

    monkeypatch.setattr("ray_jobs.train._fit", fit)
    shard = next(file for file in corpus_store().get_json("releases/2000-03-03.1.json")["shards"] if not file["path"].endswith(".index.parquet"))
    data = corpus_store().get(shard["key"])
    corpus_store().delete(shard["key"])
    with pytest.raises(CannotGoOn, match=f"{shard['path']} has vanished .*same command"):
        train(inputs)
    assert len(ended_by) == 1
    corpus_store().put(shard["key"], data)
    with pytest.raises(JobCancelled, match="stopped at step 1"):
        train(inputs)


def test_a_checkpoint_counts_once_all_before_it_is_told(tiny, s3, tmp_path, monkeypatch):
    """However long the store takes nothing of what the run tells: killed after the checkpoint, it would never tell it again."""
    wire, put, known = Wire(s3), ObjectStore.put, []

    def watched(self, key, *rest, **more):
        if key.endswith(COMMIT):
            known.extend(samples_of("told-late", 1))
        return put(self, key, *rest, **more)

    monkeypatch.setattr(ObjectStore, "put", watched)
    log = RunLog("told-late", wire.store())
    wire.cut()
    threading.Timer(12, wire.mend).start()
    inputs = stage_of_texts(tiny)
    log.begin(inputs)
    assert work_on(inputs, "told-late", alone(), log, NoticeAt(1), tmp_path, under_ray=False) == "stopped"
    log.close()
    wire.cut()
    assert known and known == samples_of("told-late", 1)


def test_a_stage_run_alone_does_not_go_on_from_what_others_left(s3):
    """With another learning rate or on another release the same name is another run; with fewer workers it is not."""
    start = {"prefix": "stages/bootstrap-0123456789ab", "content_hash": "0123456789ab"}
    inputs = {"release": "corpus/2000-01-01.1", "start": start, "stage": STAGE.model_dump(mode="json"), "training": TRAINING.model_dump(mode="json"), "seed": 5}
    take_up("short-alone", inputs)
    take_up("short-alone", inputs | {"training": inputs["training"] | {"workers": 2, "log_every": 1}})
    take_up("short-alone", inputs | {"start": start | {"origin": "/elsewhere/weights"}})
    for other in ({"release": "corpus/2000-01-02.1"}, {"start": start | {"content_hash": "ba9876543210"}}, {"stage": inputs["stage"] | {"learning_rate": 0.5}}, {"training": inputs["training"] | {"streams": 4}}):
        with pytest.raises(ValueError, match="other inputs.*another name, or delete runs/short-alone/"):
            take_up("short-alone", inputs | other)
    forget_run({"run": "short-alone"})
    take_up("short-alone", inputs | {"seed": 6})


def test_what_a_killed_job_left_beside_its_result_goes(s3, monkeypatch):
    """It was killed between recording the result and deleting what it would have gone on from."""
    asked = []
    with monkeypatch.context() as patched:
        patched.setattr(steps, "run_job", lambda spec, **how: asked.append(spec) or JobOutcome({}, "ran", "", 0.0))
        again = partial(steps.train_stage.fn, load_params(s3.params_file), STAGE, {"tag": "corpus/2000-01-01.1"}, {"content_hash": "0"}, None, False, print)
        again()
    run = asked[0].submission_id
    log_store().put_json(f"jobs/{run}/result.json", {"result": {"run": run}})
    spoil(run, "00000012-0123abcd", "commit.json", b"{}")
    assert again()["how"] == "up to date" and not list(model_store().list(f"runs/{run}/"))


def test_old_checkpoints_go_and_uncommitted_ones_are_never_read(tiny, tmp_path):
    """One that was saved at a stop stays beside those to go back to, until there is a newer one."""
    for stop, kept in ((9, ["00000009", "00000008", "00000004"]), (1, ["00000010", "00000008", "00000004"])):
        run, _ = start(tiny, "kept", tmp_path, notice=NoticeAt(stop))
        run.run()
        assert [name.split("-")[0] for name in in_store("kept")] == kept
    prefix = checkpoints_prefix("kept")
    assert {e.key.removeprefix(prefix).split("/")[0] for e in model_store().list(prefix)} == set(in_store("kept"))
    model_store().delete(f"{prefix}{in_store('kept')[0]}/commit.json")
    again, told = start(tiny, "kept", tmp_path)
    again.run()
    assert told.events[0][:2] == (8, "resumed")


def test_a_step_that_is_no_number_changes_nothing(tiny, tmp_path):
    run, told = start(tiny, "nan", tmp_path, spoilt=frozenset({3}))
    assert run.run() == "finished" and told.kinds() == ["skipped-step"] and told.events[0][0] == 4
    assert all(torch.isfinite(tensor).all() for tensor in learned(run).values())
    assert run.progress.watchdog.skipped == 1


def test_bad_steps_in_a_row_take_the_run_back_and_the_data_goes_on(tiny, tmp_path):
    run, told = start(tiny, "back", tmp_path, spoilt=frozenset({5, 6, 7, 8}))
    assert run.run() == "finished"
    assert told.kinds() == ["skipped-step"] * 4 + ["rolled-back"] and "to 4" in told.events[-1][2]
    assert run.loader.positions["0"] == 9 + 8, "nine batches until it went back, and eight more from step 4 to 12"


@pytest.mark.parametrize("spoilt, to_go", [({0, 1, 2, 3}, 4 + 12), ({3, 4, 5, 6}, 7 + 12), ({11}, 12 + 12)])
def test_a_run_without_a_checkpoint_goes_back_to_its_start(tiny, tmp_path, spoilt, to_go):
    """Bad steps at its beginning, after some good ones, and at its end: with the data after them it ends as if it had begun there."""
    training = TRAINING.model_copy(update={"checkpoint_every": 100})
    run, told = start(tiny, f"start-{to_go}", tmp_path, training=training, spoilt=frozenset(spoilt))
    assert run.run() == "finished" and told.kinds() == ["skipped-step"] * len(spoilt) + ["rolled-back"] and "to 0" in told.events[-1][2]
    assert run.loader.positions["0"] == to_go
    other, _ = start(tiny, f"later-{to_go}", tmp_path / "later", training=training)
    other.loader.positions = dict.fromkeys(other.loader.positions, to_go - 12)
    other.state.progress.rollbacks = 1
    assert other.run() == "finished" and same(learned(other), learned(run))


def test_a_bench_that_keeps_no_checkpoints_goes_back_as_well(tiny, tmp_path):
    run, told = start(tiny, "bench", tmp_path, spoilt=frozenset(range(4)))
    run.checkpoints = trainer_slice._NoCheckpoints()
    assert run.run() == "finished" and told.kinds() == ["skipped-step"] * 4 + ["rolled-back"] and not in_store("bench")


def test_a_checkpoint_that_was_gone_back_behind_is_gone_on_from_no_more(tiny, tmp_path):
    """Steps 9 to 12 are bad twice, so the run goes back to 8 and then to 4, and is stopped at 6; 8 is of what was undone."""
    stage, spoilt = STAGE.model_copy(update={"steps": 20}), frozenset(range(8, 16))
    run, told = start(tiny, "behind", tmp_path, stage=stage, spoilt=spoilt, notice=NoticeAt(18))
    assert run.run() == "stopped" and told.kinds().count("rolled-back") == 2
    assert [name.split("-")[0] for name in in_store("behind")] == ["00000006", "00000004"]
    again, told = start(tiny, "behind", tmp_path, stage=stage, spoilt=spoilt)
    assert again.run() == "finished" and told.events[0][:2] == (6, "resumed")
    straight, _ = start(tiny, "straight", tmp_path / "straight", stage=stage, spoilt=spoilt)
    assert straight.run() == "finished" and same(learned(again), learned(straight))


@pytest.mark.parametrize(
    "stops, spoilt, back_to",
    [((6, 7), range(7, 11), [4]), ((3,), range(3, 7), [0]), ((9, 10), range(8, 16), [8, 4]), ((14,), range(8, 16), [8, 4])],
    ids=["after-two-stops", "before-any-checkpoint", "at-bad-steps", "between-two-ways-back"],
)
def test_where_a_run_was_stopped_bad_steps_take_it_back_as_if_it_had_not_been(tiny, tmp_path, stops, spoilt, back_to):
    """`stops` counts steps that were done; the one to go back to is still kept, however often the run was stopped since."""
    name, stage = f"stops-{stops[0]}-{len(spoilt)}", STAGE.model_copy(update={"steps": 14})
    straight, wanted = start(tiny, f"{name}-straight", tmp_path / "straight", stage=stage, spoilt=frozenset(spoilt))
    assert straight.run() == "finished"
    events = []
    for steps in (*(after - before for before, after in zip((0, *stops), stops)), 1e9):
        run, told = start(tiny, name, tmp_path / "stopped", stage=stage, spoilt=frozenset(spoilt), notice=NoticeAt(steps))
        ending = run.run()
        events += told.events
    back = [event for event in events if event[1] == "rolled-back"]
    assert back == [event for event in wanted.events if event[1] == "rolled-back"] and [step for step, _, _ in back] == back_to
    assert ending == "finished" and same(learned(run), learned(straight)) and run.progress.history == straight.progress.history


def test_the_samples_of_a_step_are_those_that_counted(tiny, tmp_path):
    """Steps 6 to 9 are bad, so the run goes back to 4 with new data, and is stopped after the new step 5."""
    run, _ = start(tiny, "undone", tmp_path, spoilt=frozenset(range(5, 9)), notice=NoticeAt(10))
    run.log = RunLog("undone")
    run.log.begin({"stage": STAGE.model_dump(mode="json")})
    assert run.run() == "stopped" and run.progress.step == 5
    run.log.close()
    assert [{s["position"] for s in samples_of("undone", step)} for step in (4, 5)] == [{3}, {9}]
    for undone in (6, 9):
        with pytest.raises(LookupError, match=f"has undone step {undone}, as it went back .*reached step"):
            samples_of("undone", undone)
    with pytest.raises(LookupError, match="knows no sample of step 10"):
        samples_of("undone", 10)


def test_a_run_that_cannot_be_helped_ends_with_a_report(tiny, tmp_path):
    run, told = start(tiny, "lost", tmp_path, spoilt=frozenset(range(5, 100)))
    assert run.run() == "diverged" and told.kinds().count("rolled-back") == 2
    assert told.kinds()[-1] == "diverged" and "learning rate" in run.why
    assert len(told.seen) == 2 * run.loader.positions["0"], "the samples of the last steps, which went wrong, are told as well"


def test_packs_without_a_part_that_learns_teach_it_nothing(tiny, tmp_path):
    """Where only the eye learns, a pack may well hold texts alone: it is a step like any other."""
    run, _ = start(tiny, "eye", tmp_path, stage=STAGE.model_copy(update={"trainable": ("connector",)}))
    pictures, before = run.loader._pack, learned(run)
    words = pack([[TextItem([5, 6]), TextItem([7, 8], loss=True)]], run.loader.config)
    run.loader._pack = lambda name, position: pictures(name, position) if position % 2 else words
    assert run.run() == "finished" and run.progress.watchdog.skipped == 0 and not same(learned(run), before)


def test_a_loss_is_told_of_steps_that_had_a_target_of_its_kind(tiny, tmp_path, capsys):
    """Packs of words alone, then one line with a drawing in its second step: no mean where there is nothing, and none watered down."""
    run, told = start(tiny, "words", tmp_path, stage=STAGE.model_copy(update={"steps": 4}))
    pictures = run.loader._pack
    words = pack([[TextItem([5, 6]), TextItem([7, 8], loss=True)]], run.loader.config)
    run.loader._pack = lambda name, position: pictures(name, position) if position == 3 else words
    assert run.run() == "finished"
    assert told.rows[0]["mse"] is None and told.rows[0]["ce"] > 0 and " mse - " in capsys.readouterr().out
    assert "mse" not in run.progress.history[0]
    alone, _ = start(tiny, "drawn", tmp_path, stage=STAGE.model_copy(update={"steps": 4}), training=TRAINING.model_copy(update={"log_every": 1}))
    alone.loader._pack = run.loader._pack
    alone.run()
    assert run.progress.history[1]["mse"] == alone.progress.history[3]["mse"]


def test_a_stop_at_a_checkpoint_writes_it_once(tiny, tmp_path):
    run, _ = start(tiny, "once", tmp_path, notice=NoticeAt(4))
    saved = []
    save = run.checkpoints.save
    run.checkpoints.save = lambda step, *rest: (saved.append(step), save(step, *rest))
    assert run.run() == "stopped" and saved == [4]


def test_a_stage_ends_on_a_good_step_alone(tiny, s3, tmp_path):
    run, told = start(tiny, "last", tmp_path, spoilt=frozenset({11}))
    assert run.run() == "finished" and told.kinds() == ["skipped-step", "rolled-back"]
    assert run.loader.positions["0"] == 12 + 4 and run.progress.watchdog.bad == 0


@pytest.mark.parametrize("steps, rate, why", [(3, 1e38, "bad steps in a row up to the last"), (1, 1e39, "not finite after the last step")])
def test_weights_that_are_lost_at_the_end_are_no_finished_stage(tiny, s3, tmp_path, steps, rate, why):
    stage = STAGE.model_copy(update={"steps": steps, "learning_rate": rate, "warmup_steps": 0})
    run, told = start(tiny, f"end-{steps}", tmp_path, stage=stage)
    assert run.run() == "diverged" and why in run.why and not in_store(f"end-{steps}")


def test_what_is_not_finite_is_not_published(tiny, s3, tmp_path):
    key = next(iter(start(tiny, "unused", tmp_path)[0].state.parameters))
    checkpoints, _ = kept_by("not-finite", tmp_path)
    tensor = open_weights(tiny)[0].read(key)
    tensor.view(-1)[0] = float("inf")
    checkpoints.save(1, {f"average/{key}": tensor}, {}, {})
    assert checkpoints.wait()
    with pytest.raises(ValueError, match=key):
        export_average(tiny, "not-finite", 1, model_store(), tmp_path)


def loud(run, positions: set[int]) -> None:
    """The drawings at these positions have a velocity loss thousands of times the others', and are numbers all the same."""
    quiet = run.loader._pack

    def louder(name: str, position: int):
        made = quiet(name, position)
        return replace(made, latents=made.latents * 100) if position in positions else made

    run.loader._pack = louder


WATCHFUL = TRAINING.model_copy(update={"anomaly": AnomalyParams(window=5)})


def test_a_batch_whose_loss_is_far_above_the_others_changes_nothing(tiny, tmp_path):
    """Weights, averages and moments after it are those before it, to the bit."""
    before, _ = start(tiny, "before-the-spike", tmp_path / "before", training=WATCHFUL, notice=NoticeAt(8))
    assert before.run() == "stopped" and before.progress.step == 8
    run, told = start(tiny, "spiking", tmp_path / "spiking", training=WATCHFUL, notice=NoticeAt(9))
    loud(run, {8})
    assert run.run() == "stopped" and run.progress.step == 9
    assert told.kinds() == ["skipped-step", "stopped"] and "velocity loss" in told.events[0][2]
    assert same(learned(run), learned(before))
    again, told = start(tiny, "spiking", tmp_path / "spiking", training=WATCHFUL)
    assert again.run() == "finished" and told.kinds() == ["resumed"] and again.progress.watchdog.skipped == 1


def test_spikes_in_a_row_take_the_run_back_as_what_is_no_number_does(tiny, tmp_path):
    positions = {8, 9, 10, 11}
    run, told = start(tiny, "spikes", tmp_path / "spikes", training=WATCHFUL)
    loud(run, positions)
    assert run.run() == "finished"
    assert told.kinds() == ["skipped-step"] * 4 + ["rolled-back"] and "from step 12 to 8" in told.events[-1][2]
    other, _ = start(tiny, "no-numbers", tmp_path / "other", training=WATCHFUL, spoilt=frozenset(positions))
    assert other.run() == "finished" and same(learned(run), learned(other)) and run.progress.history == other.progress.history


def test_losses_are_judged_beside_those_of_their_kind():
    """Where drawings are rare, steps without one are no measure of a step with one."""
    watchdog, params = Watchdog(), AnomalyParams(window=5)
    assert all(watchdog.is_good({"ce": 0.05}, 1.0, params) for _ in range(6))
    assert watchdog.is_good({"ce": 0.05, "mse": 2.0}, 1.0, params)
    assert not watchdog.is_good({"ce": 0.6, "mse": 2.0}, 1.0, params)
    assert not watchdog.is_good({"mse": BAD}, 1.0, params) and watchdog.bad == 2


def test_a_full_disk_costs_a_checkpoint_not_the_run(tiny, undisturbed, tmp_path):
    first, told = start(tiny, "full", tmp_path)
    with files_at_most(2**14), pytest.raises(OSError, match="same command"):
        first.run()
    assert set(told.kinds()) == {"checkpoint-failed"} and not in_store("full")
    second, _ = start(tiny, "full", tmp_path)
    assert second.run() == "finished" and same(learned(second), undisturbed[0]) and second.progress.history == undisturbed[1]


def test_a_disk_without_room_for_a_folder_costs_a_checkpoint(s3, tmp_path):
    (tmp_path / "full").write_text("no folder can be made here")
    checkpoints, kinds = kept_by("no-folder", tmp_path / "full" / "scratch")
    checkpoints.save(10, {"weights/one": torch.ones(3)}, {"step": 10}, {})
    assert not checkpoints.wait() and kinds == ["checkpoint-failed"] and not in_store("no-folder")


def test_a_folder_that_another_machine_has_cleared_costs_no_checkpoint(s3, tmp_path):
    """Where machines share a disk: the one that is told first that all is sent clears it, as the checkpoint is being committed."""
    checkpoints, kinds = kept_by("shared-disk", tmp_path / "scratch")
    checkpoints.before_commit = lambda: shutil.rmtree(tmp_path / "scratch")
    save(checkpoints, 10)
    assert step_in(checkpoints) == 10 and not kinds


def test_gradients_that_are_too_long_are_made_shorter(tiny, tmp_path):
    """The first moments of a first step are a tenth of its gradients."""
    def stepped(most: float) -> tuple[float, dict[str, torch.Tensor]]:
        run, told = start(tiny, f"clipped-{most}", tmp_path / str(most), stage=STAGE.model_copy(update={"steps": 1, "max_grad_norm": most}))
        assert run.run() == "finished"
        return told.rows[0]["grad_norm"], {name: tensor * 10 for name, tensor in learned(run).items() if name.startswith("exp_avg/")}

    norm, free = stepped(1e9)
    told, clipped = stepped(norm / 4)
    assert told == norm == pytest.approx(torch.nn.utils.get_total_norm(free.values()).item(), rel=1e-4), "the one before clipping is told"
    assert all(torch.allclose(clipped[name], free[name] / 4, rtol=1e-3, atol=1e-9) for name in free)


def test_a_run_in_bfloat16_learns_near_one_in_float32_and_goes_on_to_the_same_bits(tiny, undisturbed, tmp_path):
    """Layers compute in bfloat16; weights, averages and moments are float32."""
    narrow = TRAINING.model_copy(update={"precision": "bfloat16"})
    whole, _ = start(tiny, "narrow", tmp_path / "whole", training=narrow)
    assert whole.run() == "finished"
    wanted = [row["mse"] for row in undisturbed[1]]
    found = [row["mse"] for row in whole.progress.history]
    assert found != wanted and found == pytest.approx(wanted, rel=0.05)
    assert {tensor.dtype for tensor in learned(whole).values()} == {torch.float32}
    start(tiny, "narrow-cut", tmp_path / "cut", training=narrow, notice=NoticeAt(7))[0].run()
    again, _ = start(tiny, "narrow-cut", tmp_path / "cut", training=narrow)
    assert again.run() == "finished" and same(learned(again), learned(whole)) and again.progress.history == whole.progress.history


def test_what_killed_attempts_left_on_this_machine_goes(s3, tmp_path):
    left = [tmp_path / name for name in ("00000008-0123abcd", "resume-00000004-0123abcd")]
    for folder in (*left, tmp_path / "somebody-elses"):
        folder.mkdir()
        (folder / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"x")
    kept_by("swept", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["somebody-elses"]


def test_an_export_waits_for_a_silent_store(tiny, s3, tmp_path):
    run, _ = start(tiny, "away", tmp_path / "scratch", stage=STAGE.model_copy(update={"steps": 1}))
    assert run.run() == "finished"
    wire, out = Wire(s3), tmp_path / "out"
    out.mkdir()
    wire.cut()
    threading.Timer(3, wire.mend).start()
    export_average(tiny, "away", 1, ObjectStore(s3.bucket_models, wire.settings), out, outage_minutes=1)
    wire.cut()
    assert torch.equal(load_file(out / "ema.safetensors")["language_model.model.norm.weight"], learned(run)["average/language_model.model.norm.weight"])


def test_without_room_for_an_export_the_folder_is_told(tiny, s3, tmp_path):
    run, _ = start(tiny, "no-room", tmp_path / "scratch", stage=STAGE.model_copy(update={"steps": 1}))
    assert run.run() == "finished"
    (tmp_path / "out").mkdir()
    with files_at_most(2**14), pytest.raises(OSError, match="too large: '.*/cache/exports/no-room'"):
        export_average(tiny, "no-room", 1, model_store(), tmp_path / "out")


def test_an_export_in_parts_is_the_one_of_one_file(tiny, s3, tmp_path):
    run, _ = start(tiny, "in-parts", tmp_path / "scratch", stage=STAGE.model_copy(update={"steps": 1}))
    assert run.run() == "finished"
    at_once, in_parts = tmp_path / "one", tmp_path / "parts"
    for out, most in ((at_once, 2**30), (in_parts, 2**16)):
        out.mkdir()
        export_average(tiny, "in-parts", 1, model_store(), out, part_bytes=most)
    parts = [load_file(path) for path in sorted(in_parts.glob("ema-*.safetensors"))]
    assert len(parts) > 2 and not (in_parts / "ema.safetensors").exists()
    assert all(len(part) == 1 or sum(tensor.nbytes for tensor in part.values()) <= 2**16 for part in parts)
    wanted = load_file(at_once / "ema.safetensors")
    assert same({key: tensor for part in parts for key, tensor in part.items()}, wanted) and sum(map(len, parts)) == len(wanted)
    assert same(dict(UniMedVL.from_pretrained(in_parts).state_dict()), dict(UniMedVL.from_pretrained(at_once).state_dict()))
    record = publish_folder(in_parts, "in-parts")
    assert {path.name for path in fetch_folder(record).iterdir()} == {path.name for path in in_parts.iterdir()}


def test_no_earlier_checkpoint_is_published_in_the_stead_of_the_last(tiny, s3, tmp_path):
    run, _ = start(tiny, "lost-last", tmp_path / "scratch", stage=STAGE.model_copy(update={"steps": 2}), training=TRAINING.model_copy(update={"checkpoint_every": 1}))
    assert run.run() == "finished"
    newest, earlier = in_store("lost-last")
    for name in (newest, earlier):
        model_store().delete(f"runs/lost-last/checkpoints/{name}/{COMMIT}")
        with pytest.raises(DamagedCheckpoint, match="step 2 .* is gone"):
            export_average(tiny, "lost-last", 2, model_store(), tmp_path)


def test_whatever_is_told_is_counted_for_alarms(tiny, s3, tmp_path):
    class Counted:
        kinds, rows = Counter(), 0

        def count(self, kind: str) -> None:
            self.kinds[kind] += 1

        def set(self, row: dict) -> None:
            self.rows += 1

    run, told = start(tiny, "counted", tmp_path, spoilt=frozenset({1}))
    run.metrics = Counted()
    skipped = {"stream": "0", "position": 3, "sample": "made/torn", "reason": "cannot be planned"}
    run.loader = MadePacks(run.loader.config, spoilt=run.loader.spoilt, skipped=(skipped,))
    with files_at_most(2**14), pytest.raises(OSError):
        run.run()
    assert run.metrics.kinds == Counter(told.kinds()) and run.metrics.rows == len(told.rows) and {"skipped-sample", "skipped-step", "checkpoint-failed"} <= set(told.kinds())


def test_what_the_release_has_nothing_of_is_told(tiny, s3, tmp_path):
    run, told = start(tiny, "absent", tmp_path, notice=NoticeAt(1))
    run.loader.absent = "the release has no train sample of text"
    run.run()
    assert told.events[0] == (0, "absent-task", run.loader.absent)


def test_a_stage_stops_early_where_nothing_gets_better(tiny, s3, tmp_path):
    """A loss that is no number counts neither as better nor as worse."""
    run, told = start(tiny, "early", tmp_path, stage=StageParams(**STAGE.model_dump() | {"evaluate_every": 2, "early_stop": {"patience": 2}}))
    run.validation = Flat([BAD, 1.0, 1.0, BAD, 1.0])
    assert run.run() == "finished" and run.progress.step == 10 and told.kinds()[-1] == "early-stop"
    assert told.rows[-2]["eta"] > told.rows[-1]["eta"] == 0, "nothing is to come after it"


def test_a_loss_that_falls_by_too_little_is_told_as_one(tiny, s3, tmp_path):
    run, told = start(tiny, "little", tmp_path, stage=StageParams(**STAGE.model_dump() | {"evaluate_every": 2, "early_stop": {"patience": 1, "min_delta": 0.5}}))
    run.validation = Flat([1.0, 0.9])
    run.run()
    assert told.events[-1] == (4, "early-stop", "the validation loss is 0.9000: for patience=1 evaluations it has not fallen by more than min_delta=0.5 from 1.0000")


def test_a_stage_that_stops_between_two_log_lines_has_a_last_one(tiny, tmp_path):
    run, told = start(tiny, "between", tmp_path, stage=StageParams(**STAGE.model_dump() | {"evaluate_every": 3, "early_stop": {"patience": 2}}))
    run.validation = Flat([1.0, 1.0, 1.0])
    assert run.run() == "finished" and run.progress.step == 9 == told.rows[-1]["step"] == run.progress.history[-1]["step"]


def test_scores_are_not_lost_with_the_process(tiny, tmp_path):
    first, _ = start(tiny, "scored", tmp_path, stage=STAGE.model_copy(update={"evaluate_every": 3}), notice=NoticeAt(10))
    first.validation = Flat([1.0, 1.0, 1.0])
    assert first.run() == "stopped"
    second, _ = start(tiny, "scored", tmp_path)
    assert second.run() == "finished" and second.progress.scores == {"vqa/mini": 0.25}


def test_a_stage_that_gave_a_tokenizer_its_special_tokens_is_exported_with_them(tiny, s3, tmp_path):
    folder, out = shutil.copytree(tiny, tmp_path / "start"), tmp_path / "out"
    out.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(["CT"], trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    size, tensors = tokenizer.get_vocab_size(), load_file(folder / "ema.safetensors")
    cut = {key: tensors[key][:size].clone() for key in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")}
    save_file(tensors | cut, folder / "ema.safetensors")
    written = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").write_text(json.dumps(written | {"vocab_size": size}))
    run, _ = start(folder, "grown", tmp_path / "scratch", stage=STAGE.model_copy(update={"steps": 1}))
    assert run.run() == "finished"
    export_average(folder, "grown", 1, model_store(), out)
    exported = UniMedVL.from_pretrained(out)
    assert exported.config == UniMedVL.from_pretrained(folder).config and exported.config.llm.vocab_size == size + 4
    assert torch.equal(exported.language_model.lm_head.weight, learned(run)["average/language_model.lm_head.weight"])
