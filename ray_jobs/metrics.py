"""How a running stage is doing, for Prometheus: through Ray's own metrics endpoint, one a node.

Ray puts `ray_` before each name and `_total` behind a counter; `EXPORTED` are the names to query, which is what
`infra/dashboards/training.json` does.
"""

import math

# Fields of a log line, and what they mean.
GAUGES = {
    "step": "steps done",
    "ce": "cross-entropy of target text, mean since the last log line",
    "mse": "velocity loss of target images, mean since the last log line",
    "lr": "learning rate",
    "grad_norm": "gradient norm before clipping",
    "tokens_per_s": "real tokens a second over all workers",
    "real_share": "share of a pack that is samples rather than padding",
    "mfu": "model FLOP/s as a share of the hardware's peak",
    "wait": "share of the time spent waiting for data",
    "stall": "share of the time that training stood still for saves and validations",
    "skipped": "samples passed over since the last log line",
}
PREFIX, EVENTS, TAGS = "unimed_training_", "unimed_training_events", ("run", "stage")
EXPORTED = frozenset({f"ray_{PREFIX}{field}" for field in GAUGES} | {f"ray_{EVENTS}_total"})


class StageMetrics:
    """The gauges of one stage, and a counter of what happened on the way by kind (`kind="skipped-sample"` …)."""

    def __init__(self, run: str, stage: str):
        from ray.util.metrics import Counter, Gauge

        tags = {"run": run, "stage": stage}
        self._gauges = {field: Gauge(f"{PREFIX}{field}", meaning, TAGS).set_default_tags(tags) for field, meaning in GAUGES.items()}
        self._events = Counter(EVENTS, "what happened to a stage, by kind", (*TAGS, "kind")).set_default_tags(tags)

    def set(self, row: dict) -> None:
        """A log line; fields that are no gauge or have no value are passed over."""
        for field, gauge in self._gauges.items():
            value = row.get(field)
            if value is not None and math.isfinite(value):
                gauge.set(float(value))

    def count(self, kind: str) -> None:
        self._events.inc(tags={"kind": kind})
