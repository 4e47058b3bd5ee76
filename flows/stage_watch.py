"""A running stage in the Prefect UI: how far it is, its curves so far, and what it draws at each evaluation."""

import time
from collections.abc import Callable
from uuid import UUID

from flows.curves import Line, plot
from infra.store import log_store
from model.curriculum import StageParams
from ray_jobs import runs
from ray_jobs.runs import Run

EVERY_S = 10.0
# Versions of the sample pictures a stage leaves behind; between two, the newest takes the place of the last.
VERSIONS = 20


class StageWatch:
    """Is told each line of the stage's log, and every so often shows what the run log on S3 holds by then.

    One progress artifact and one picture of curves a stage, brought up to date in place. What cannot be shown is
    no reason to fail: it is told once.
    """

    def __init__(self, run: str, stage: StageParams, log: Callable[[str], None], every_s: float = EVERY_S):
        self.run, self.stage, self.log, self.every_s = run, stage, log, every_s
        self._next, self._told = 0.0, False
        self._progress: UUID | None = None
        self._curves: UUID | None = None
        self._samples: UUID | None = None
        self._samples_shown: tuple[str, int] = ("", -1)

    def __enter__(self) -> "StageWatch":
        return self

    def __exit__(self, *_) -> None:
        """Where anything ran, show how it ended."""
        if self._next:
            self.show()

    def line(self, line: str) -> None:
        self.log(line)
        if time.monotonic() >= self._next:
            self.show()
            self._next = time.monotonic() + self.every_s

    def show(self) -> None:
        try:
            self._show(runs.read(self.run))
        except LookupError:
            # It has not begun yet.
            return
        except Exception as error:
            if not self._told:
                self.log(f"{self.stage.name} goes on, but cannot be shown here ({type(error).__name__}: {error})")
            self._told = True

    def _show(self, run: Run) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        rows = run.metrics.to_dict("records")
        step = rows[-1]["step"] if rows else 0
        share, told = 100 * step / self.stage.steps, f"{self.stage.name}: step {step} of {self.stage.steps}"
        if self._progress:
            update_progress_artifact(self._progress, share, told)
        else:
            self._progress = create_progress_artifact(share, f"progress-{self.stage.name}", told)
        key = f"training/{self.run}/curves.png"
        log_store().put(key, plot([Line(self.run, rows)]))
        self._curves = self._picture(self._curves, key, f"curves-{self.stage.name}", told)
        if run.pictures:
            self._show_samples(run.pictures[-1])

    def _show_samples(self, key: str) -> None:
        step = int(key.rpartition("/")[2].split("-")[0])
        version = step * VERSIONS // self.stage.steps
        if key != self._samples_shown[0]:
            replaced = self._samples if version == self._samples_shown[1] else None
            self._samples = self._picture(replaced, key, f"samples-{self.stage.name}", f"{self.stage.name}: drawn at step {step}")
            self._samples_shown = key, version

    def _picture(self, known: UUID | None, key: str, name: str, told: str) -> UUID:
        """Show an object of the log bucket: in place of what an artifact showed before, or as a new one."""
        from prefect.artifacts import create_image_artifact
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import ArtifactUpdate

        # A link signed anew is another link: browsers fetch the picture again.
        link = log_store().url(key)
        if known is None:
            return create_image_artifact(link, name, told)
        with get_client(sync_client=True) as client:
            client.update_artifact(known, ArtifactUpdate(data=link, description=told))
        return known
