"""What a release's columns add up to: by source and modality, and each source's balance beside the last release's.

A release's expectations look at these and at the columns themselves, never at pictures.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from corpus import index
from corpus.params import CorpusParams
from corpus.sample import SPLITS

REQUIRED = ("id", "task", "modality", "source", "license", "split", "patient")
CLASSES = ("task", "modality", "split")


def columns(kept: pa.Table):
    """The columns of an index that are judged, as a DataFrame with a row a sample; `splits_of_patient` has to be 1.

    Ids and patients are numbers here, equal where the words are: long words are what takes time.
    """
    # Of other types than these Great Expectations compares one value at a time.
    frame = kept.select([*CLASSES, "source", "license", "side", "text_length"]).to_pandas().astype({"side": float, "text_length": float})
    named = {name: _codes(kept, name) for name in ("id", "patient")}
    return frame.assign(row=np.arange(len(kept)), **named, splits_of_patient=_splits_of_patient(named["patient"], index.column(kept, "split")))


def _codes(kept: pa.Table, name: str) -> np.ndarray:
    """Words as numbers, NaN where there is none."""
    return kept[name].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(float)


def _splits_of_patient(patients: np.ndarray, splits: np.ndarray) -> np.ndarray:
    # All without a patient count as one: they are missing, which is judged by itself.
    patients = np.nan_to_num(patients + 1).astype(np.int64)
    seen = np.zeros((patients.max(initial=0) + 1, splits.max(initial=0) + 1), dtype=bool)
    seen[patients, splits] = True
    return seen.sum(axis=1)[patients]


def groups(frame, params: CorpusParams):
    """A row a source and modality: how many samples, what is missing, the extremes of what is measured, what may not be."""
    judged = frame[["source", "modality", "side", "text_length"]].assign(
        missing=frame[list(REQUIRED)].isna().sum(axis=1),
        not_licensed=~frame["license"].isin(params.quality.licenses),
        leaking=frame["splits_of_patient"] != 1,
    )
    found = judged.groupby(["source", "modality"], observed=True, dropna=False).agg(
        samples=("missing", "size"),
        missing=("missing", "sum"),
        smallest_side=("side", "min"),
        largest_side=("side", "max"),
        shortest_text=("text_length", "min"),
        longest_text=("text_length", "max"),
        not_licensed=("not_licensed", "sum"),
        leaking=("leaking", "sum"),
    )
    return found.reset_index().astype({"source": str, "modality": str})


def presence(frame, params: CorpusParams):
    """A row a modality and split that has to be there: how many samples it has, and has to have."""
    import pandas as pd

    wanted = [("modality", params.expectations.modalities, params.expectations.min_per_modality), ("split", SPLITS, params.expectations.min_per_split)]
    return pd.DataFrame([_count(frame, kind, value) | {"at_least": least} for kind, values, least in wanted for value in values])


def _count(frame, kind: str, value: str) -> dict:
    return {"of": kind, "value": value, "samples": int((frame[kind] == value).sum())}


def by_source(frame) -> dict[str, dict]:
    """{source: {"samples": n, "task": {task: n}, "modality": {…}, "split": {…}}}: what the next release is compared with."""
    found = {}
    for source, part in frame.groupby("source", observed=True):
        counts = {kind: {str(value): int(n) for value, n in sorted(part[kind].value_counts().items()) if n} for kind in CLASSES}
        found[str(source)] = {"samples": len(part)} | counts
    return found


def balance(now: dict[str, dict], before: dict[str, dict], params: CorpusParams):
    """A row a class of a source that both releases have: its share of the source's samples then and now, and how far it moved.

    A source that is new or gone shifts the whole on purpose, and shares of few samples move by themselves: neither is compared.
    """
    import pandas as pd

    both = [s for s in now if min(now[s]["samples"], before.get(s, {"samples": 0})["samples"]) >= params.expectations.balance_from]
    rows = [row for source in both for row in _moves(source, now[source], before[source])]
    return pd.DataFrame(rows, columns=["source", "of", "value", "before", "now", "shift"])


def _moves(source: str, now: dict, before: dict) -> Iterable[dict]:
    for kind in CLASSES:
        for value in sorted({*now[kind], *before[kind]}):
            then, today = before[kind].get(value, 0) / before["samples"], now[kind].get(value, 0) / now["samples"]
            yield {"source": source, "of": kind, "value": value, "before": round(then, 4), "now": round(today, 4), "shift": round(abs(today - then), 4)}
