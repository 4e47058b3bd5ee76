"""Is what the model sees, and what it answers, still what it was judged on?

A column has drifted when the difference is both significant and large. The inputs have drifted when
enough components of the model's own image embedding have, or when the embeddings have left the space
that those components span: a new scanner often moves them where the reference never varied.
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np

from infra.records import utc_now
from monitoring.params import DriftParams

NUMERIC = ("prompt_chars", "prompt_words", "answer_chars", "confidence")
LABELS = ("predicted_modality",)
OUTSIDE = "outside_reference"
FOLDS = 5
# What users ask for may change without anything being wrong: told, but never a reason to retrain.
INFORMATIVE = ("prompt_chars", "prompt_words", "answer_chars")


@dataclass(frozen=True)
class ColumnDrift:
    """A column's effect size with its threshold, and the p-value with its own."""

    column: str
    statistic: str
    effect: float
    min_effect: float
    p_value: float
    max_p: float
    drifted: bool


@dataclass(frozen=True)
class DriftReport:
    """The verdict on a window."""

    verdict: Literal["drift", "no drift", "insufficient"]
    model_version: str
    window: dict
    score: float
    columns: list[ColumnDrift] = field(default_factory=list)
    created_at: str = ""

    @property
    def drifted(self) -> list[str]:
        """Names of the drifted columns."""
        return [c.column for c in self.columns if c.drifted]

    def to_json(self) -> dict:
        return asdict(self)


def detect(window, reference, model_version: str, params: DriftParams) -> DriftReport:
    """Compare a window of the request log with the reference window (DataFrames of its columns)."""
    seen = window[window["embedding"].notna()] if len(window) else window
    span = {"rows": len(seen), "reference_rows": len(reference)}
    if len(seen) < params.min_rows:
        return DriftReport("insufficient", model_version, span | {"needed": params.min_rows}, 0.0, [], utc_now())
    span |= {"from": str(seen["time"].min()), "to": str(seen["time"].max())}
    now, then = tables(seen, reference, params)
    max_p = params.alpha / now.shape[1]
    columns = [_numeric(c, now[c], then[c], params, max_p) for c in now.columns if c not in LABELS]
    columns += [_label(c, now[c], then[c], params, max_p) for c in LABELS]
    components = [c for c in columns if c.column.startswith("embedding_")]
    share = sum(c.drifted for c in components) / len(components)
    inputs = {c.column for c in components} | {OUTSIDE}
    outside = any(c.drifted for c in columns if c.column == OUTSIDE)
    outputs = any(c.drifted for c in columns if c.column not in inputs and c.column not in INFORMATIVE)
    drifted = outside or share >= params.min_share or (outputs and share > 0)
    return DriftReport("drift" if drifted else "no drift", model_version, span, share, columns, utc_now())


def tables(window, reference, params: DriftParams):
    """(window, reference) as flat tables of a fixed size: embedding components, text and output columns."""
    import pandas as pd

    now, then = _sample(window, params.max_rows), _sample(reference, params.max_rows)
    seen, known = (np.stack(frame["embedding"].to_list()) for frame in (now, then))
    project = _principal(known, params.components)
    flat = []
    for frame, (scores, outside) in ((now, project(seen)), (then, (project(known)[0], _held_out(known, params.components)))):
        parts = pd.DataFrame(scores, columns=[f"embedding_{i}" for i in range(scores.shape[1])])
        parts[OUTSIDE] = outside
        for column in NUMERIC:
            parts[column] = frame[column].astype(float).fillna(0.0).to_numpy()
        for column in LABELS:
            parts[column] = frame[column].fillna("none").astype(str).to_numpy()
        flat.append(parts)
    return tuple(flat)


def _sample(frame, rows: int):
    return frame if len(frame) <= rows else frame.sample(rows, random_state=0)


def _principal(reference: np.ndarray, count: int):
    """embeddings -> (scores on the reference's leading components in its own deviations, distance from their span)."""
    centre = reference.mean(axis=0)
    _, singular, axes = np.linalg.svd(reference - centre, full_matrices=False)
    axes = axes[: min(count, len(singular))]
    scale = singular[: len(axes)] / np.sqrt(len(reference)) + 1e-9

    def project(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = (embeddings - centre) @ axes.T
        return scores / scale, np.linalg.norm(embeddings - centre - scores @ axes, axis=1)

    return project


def _held_out(reference: np.ndarray, count: int) -> np.ndarray:
    """Each reference row's distance from the components of the other rows: its own would flatter it."""
    fold, distance = np.arange(len(reference)) % FOLDS, np.empty(len(reference))
    for k in range(FOLDS):
        distance[fold == k] = _principal(reference[fold != k], count)(reference[fold == k])[1]
    return distance


def _numeric(name: str, now, then, params: DriftParams, max_p: float) -> ColumnDrift:
    from scipy.stats import ks_2samp, wasserstein_distance

    effect = float(wasserstein_distance(now, then) / max(then.std(), 1e-6 + abs(then.mean()) * 0.01))
    p_value = float(ks_2samp(now, then).pvalue)
    return ColumnDrift(name, "normed Wasserstein, KS", effect, params.min_effect, p_value, max_p, bool(effect >= params.min_effect and p_value < max_p))


def _label(name: str, now, then, params: DriftParams, max_p: float) -> ColumnDrift:
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import chi2_contingency

    values = sorted(set(now) | set(then))
    counts = np.array([[int((column == v).sum()) for v in values] for column in (now, then)])
    effect = float(jensenshannon(counts[0], counts[1], base=2)) if len(values) > 1 else 0.0
    p_value = float(chi2_contingency(counts).pvalue) if len(values) > 1 else 1.0
    return ColumnDrift(name, "Jensen-Shannon, chi-square", effect, params.min_effect, p_value, max_p, bool(effect >= params.min_effect and p_value < max_p))
