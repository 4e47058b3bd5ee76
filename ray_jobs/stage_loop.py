"""The training loop of a stage, as each worker runs it."""

import time
from collections.abc import Callable
from math import isfinite
from typing import Literal

import torch

from model.curriculum import StageParams, TrainingParams
from model.unimedvl import UniMedVL
from ray_jobs import notice as notices
from ray_jobs.loader import Batch, Loader
from ray_jobs.meter import TOLD, Meter, told
from ray_jobs.place import Place
from ray_jobs.run_log import RunLog
from ray_jobs.stage_checkpoints import StageCheckpoints
from ray_jobs.step import Outcome, Stepper
from ray_jobs.training_state import Progress, TrainingState
from ray_jobs.validation import Validation

Ending = Literal["finished", "stopped", "diverged"]


class StageRun:
    """One stage on one worker, from where its last checkpoint stands to its end.

    Args:
        log: what the run tells of itself; the first worker's and the workers' samples.
        notice: says when this worker is to end.
        start: gives the network that the stage begins with.
        under_ray: whether Ray may be draining nodes.
        metrics: told each log row (`set`, by the first worker) and each event (`count`); None for none.
    """

    def __init__(
        self,
        model: UniMedVL,
        loader: Loader,
        stage: StageParams,
        training: TrainingParams,
        seed: int,
        place: Place,
        checkpoints: StageCheckpoints,
        log: RunLog,
        notice: notices.Notice,
        start: Callable[[], UniMedVL],
        validation: Validation | None = None,
        under_ray: bool = True,
        metrics=None,
    ):
        self.loader, self.stage, self.training, self.place = loader, stage, training, place
        self.start, self.checkpoints, self.log, self.notice, self.validation, self.under_ray, self.metrics = start, checkpoints, log, notice, validation, under_ray, metrics
        # What goes wrong with them is told and counted as everything else is.
        checkpoints.on_event = self.event
        self.state = TrainingState(model.train(), stage)
        self.stepper = Stepper(model, self.state, stage, training, seed, place)
        self.seen: list[dict] = []
        self.why = ""
        self.saved_for_drain = False

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def run(self) -> Ending:
        """Train; returns how it ended. Whatever the end, the last checkpoint is committed then."""
        self._resume()
        if self.loader.absent:
            self._tell("absent-task", self.loader.absent)
        self.meter = Meter(self.stepper.model.config, self.stage, self.place, self.progress.seconds)
        self.meter.go_on_from(self.progress.sums, self.progress.counts)
        try:
            return self._steps()
        finally:
            self.loader.close()

    def _steps(self) -> Ending:
        while not self.progress.done:
            batch = next(self.loader)
            self.meter.loaded(batch)
            outcome = self.stepper.step(batch.packs, stop=self.notice.given(), skipped=len(batch.skipped))
            self.meter.stepped(outcome)
            self._note(batch, outcome)
            # While the loader's thread has nothing to do: each tensor that ends lets another thread run first.
            del batch
            if why := self._gone_wrong():
                if not self._roll_back(why):
                    return "diverged"
                continue
            self._after(self.progress.step, outcome.stop)
            if outcome.stop and not self.progress.done:
                self._require_saved()
                self._tell("stopped", "told to stop; the same command goes on from here")
                return "stopped"
        self._save()
        self._require_saved()
        return "finished"

    def _gone_wrong(self) -> str:
        """Why the run must go back, or nothing. After the last step no later one would tell what that step has done."""
        progress = self.progress
        ends = progress.step >= self.stage.steps
        if progress.watchdog.gives_up(self.training.anomaly) or (ends and progress.watchdog.bad):
            return f"{progress.watchdog.bad} bad steps in a row" + " up to the last" * ends
        if ends and self.stepper.sum(torch.tensor([self.state.not_finite()])).item():
            return "weights that are not finite after the last step"
        return ""

    def _after(self, step: int, stop: bool) -> None:
        """What is due after a step: a validation, a log line, a checkpoint, which is also the last thing before a stop."""
        last = step >= self.stage.steps
        if self.stage.evaluate_every and (step % self.stage.evaluate_every == 0 or last):
            self._validate(step)
        self.progress.done = self.progress.done or last
        if self.progress.done or step % self.training.log_every == 0:
            self._log(step)
        # A checkpoint to go back to is one of a good step, and one that the run has however often it is stopped.
        due = step % self.training.checkpoint_every == 0 and not self.progress.watchdog.bad
        if not self.progress.done and (stop or due or self._drained()):
            self._save(interim=not due)

    def _log(self, step: int) -> None:
        left = 0 if self.progress.done else self.stage.steps - step
        row = self.meter.row(step, left, self.stepper.sum(self.meter.own()))
        if row["good"]:
            self.progress.history.append({key: row[key] for key in TOLD if row[key] is not None})
        self._tell_seen()
        if self.place.first:
            print(self.meter.line(row), flush=True)
            self.log.metrics(row)
            if self.metrics:
                self.metrics.set(row)

    def _note(self, batch: Batch, outcome: Outcome) -> None:
        """Which samples the step saw, and what went wrong."""
        step = self.progress.step
        self.seen += [{"step": step, "stream": d.stream, "position": d.position, "sample": d.sample} for d in batch.drawn]
        for skipped in batch.skipped:
            self.event(step, "skipped-sample", f"{skipped['sample']} (stream {skipped['stream']}, position {skipped['position']}): {skipped['reason']}")
        if not outcome.good:
            self._tell("skipped-step", f"cross-entropy {told(outcome.ce, '.4g')}, velocity loss {told(outcome.mse, '.4g')}, gradient norm {outcome.norm:.4g}: the weights are left as they were")

    def _tell_seen(self) -> None:
        self.log.samples(self.place.rank, self.seen)
        self.seen = []

    def _save(self, interim: bool = False) -> None:
        begun = time.perf_counter()
        self._tell_seen()
        self.progress.seconds = self.meter.seconds
        if not interim:
            self.progress.rolled_back_to = None
        self.progress.sums, self.progress.counts = list(self.meter.sums), list(self.meter.counts)
        self.checkpoints.save(self.progress.step, self.state.tensors(), self.progress.to_json(), self.loader.state_dict(), interim)
        self.meter.paused(time.perf_counter() - begun)

    def _require_saved(self) -> None:
        """Raises OSError when the checkpoint that the run ends with was not committed."""
        if not self.checkpoints.wait():
            raise OSError(f"the last checkpoint could not be written: {self.checkpoints.last_error}; mend that and run the same command again")

    def _resume(self) -> None:
        found = self.checkpoints.load(self.state.tensors())
        if found:
            saved, streams = found
            self.state.progress = Progress.from_json(saved)
            self.loader.load_state_dict(streams)
            if self.place.first:
                print(f"resumed at step {self.progress.step}", flush=True)
                self.event(self.progress.step, "resumed", f"on {self.place.workers} workers")

    def _roll_back(self, why: str) -> bool:
        """Go back to the last good checkpoint, or the one before where that did not help, or the start where there is none; the data goes on, not back.

        False when it was gone back too often.
        """
        now = self.progress
        if now.rollbacks >= self.training.anomaly.max_rollbacks:
            return self._diverged(f"{why} after going back {now.rollbacks} times")
        found = self.checkpoints.load(self.state.tensors(), before=now.rolled_back_to, interim=False) or self.checkpoints.load(self.state.tensors(), interim=False)
        if found:
            then = Progress.from_json(found[0])
        else:
            self.state.begin_again(self.start())
            then = self.state.progress
        self.checkpoints.give_up_after(then.step)
        # Before the word of it: what is told later counts.
        self._tell_seen()
        then.rollbacks, then.rolled_back_to, then.seconds = now.rollbacks + 1, then.step, self.meter.seconds
        then.watchdog.skipped = now.watchdog.skipped
        self.state.progress = then
        self.meter.go_on_from(then.sums, then.counts)
        self._tell("rolled-back", f"from step {now.step} to {then.step}, with new data: {why}")
        return True

    def _diverged(self, why: str) -> bool:
        self.why = f"{why}; look at `unimed train show`, then try a lower learning rate than {self.stage.learning_rate:g} or a longer warm-up than {self.stage.warmup_steps} steps"
        self._tell("diverged", self.why)
        # The last steps are those that somebody will want to look into.
        self._tell_seen()
        return False

    def _validate(self, step: int) -> None:
        begun = time.perf_counter()
        found = self.validation.loss(self.stepper)
        self.progress.scores, sheet = self.validation.look(self.stepper)
        if self.place.first:
            print(f"{self.stage.name} step {step}: validation loss {found['loss']:.4f}" + "".join(f", {name} {score:.1%}" for name, score in self.progress.scores.items()), flush=True)
            self.log.scores(step, found | self.progress.scores)
            if sheet:
                self.log.picture(step, "drawings", sheet)
        self._stop_early(step, found["loss"])
        self.meter.paused(time.perf_counter() - begun)

    def _stop_early(self, step: int, loss: float) -> None:
        """Every worker has the same loss, so all of them stop or none. One that is no number is for the next steps to judge."""
        rule, progress = self.stage.early_stop, self.progress
        if not isfinite(loss):
            return
        if progress.best is None or loss < progress.best - (rule.min_delta if rule else 0):
            progress.best, progress.since_best = loss, 0
            return
        progress.since_best += 1
        # A stage ends on a good step: after a bad one the next evaluation sees to it.
        if rule and progress.since_best >= rule.patience and not progress.watchdog.bad:
            progress.done = True
            self._tell("early-stop", f"the validation loss is {loss:.4f}: for patience={rule.patience} evaluations it has not fallen by more than min_delta={rule.min_delta:g} from {progress.best:.4f}")

    def _drained(self) -> bool:
        """Whether to save because a node goes away: asked every few steps, by all workers at the same one."""
        if not self.under_ray or self.saved_for_drain or self.progress.step % self.training.log_every:
            return False
        self.saved_for_drain = notices.draining()
        return self.saved_for_drain

    def _tell(self, kind: str, detail: str) -> None:
        if self.place.first:
            print(f"{self.stage.name} step {self.progress.step}: {kind}: {detail}", flush=True)
            self.event(self.progress.step, kind, detail)

    def event(self, step: int, kind: str, detail: str) -> None:
        """Into the run log, and counted for whoever is to be alarmed."""
        self.log.event(step, kind, detail)
        if self.metrics:
            self.metrics.count(kind)
