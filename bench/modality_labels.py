"""How well wrong modality labels are found: `python -m bench.modality_labels FOLDER...`, folders with records.jsonl.

All folders are one release. Prints false alarms among the labels as they are; what is found when 5 % of the pictures get
another modality that the classifier knows, drawn at random; and what happens to each source when only ten of its pictures are there.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from corpus import index, picture_kind, quality
from corpus.params import ModalityParams, QualityParams
from corpus.readers import records
from corpus.readers.source import Source
from corpus.record import Rejection

SWAPPED = 0.05


def rows(folder: Path) -> list[dict]:
    """The index rows of a folder's records, one a picture."""
    params = QualityParams(max_side=256)
    outcomes = (quality.examine(record, params, b"salt") for record in records.read(Source(folder, folder.name)) if not isinstance(record, Rejection))
    return [index.row(outcome[-1]) for outcome in outcomes if not isinstance(outcome, Rejection)]


def judged(found: list[dict], params: ModalityParams) -> dict[int, picture_kind.Verdict]:
    verdicts = picture_kind.disagreements(index.read(index.to_bytes(found), "all"), params)
    return {verdict.row: verdict for verdict in verdicts}


def swapped(found: list[dict], rng: np.random.Generator) -> tuple[list[dict], set[int]]:
    """Some rows with another kind of modality, and which."""
    counts = Counter(picture_kind.kind(row["modality"]) for row in found)
    kinds = {row["modality"]: picture_kind.kind(row["modality"]) for row in found if counts[picture_kind.kind(row["modality"])] >= ModalityParams().min_pictures}
    chosen = {i for i, row in enumerate(found) if row["modality"] in kinds and rng.random() < SWAPPED}
    others = {name: [other for other in sorted(kinds) if kinds[other] != kinds[name]] for name in kinds}
    return [row | {"modality": str(rng.choice(others[row["modality"]]))} if i in chosen else row for i, row in enumerate(found)], chosen


def told(name: str, verdicts: list, of: int) -> str:
    certain = sum(verdict.certain for verdict in verdicts)
    return f"{name}: {of} pictures, {certain} kept aside ({certain / max(of, 1):.2%}), {len(verdicts) - certain} for a person ({(len(verdicts) - certain) / max(of, 1):.2%})"


def main(folders: list[Path]) -> None:
    """Measure and print."""
    params, found = ModalityParams(), [row for folder in folders for row in rows(folder)]
    print(told("labels as they are", list(judged(found, params).values()), len(found)))
    wrong, right, total = [], [], 0
    for seed in range(5):
        changed, chosen = swapped(found, np.random.default_rng(seed))
        verdicts, total = judged(changed, params), total + len(chosen)
        wrong += [verdict for row, verdict in verdicts.items() if row in chosen]
        right += [verdict for row, verdict in verdicts.items() if row not in chosen]
    print(told("wrong labels", wrong, total))
    print(told("right labels beside them", right, 5 * len(found) - total))
    for source in sorted({row["source"] for row in found}):
        few = [row for row in found if row["source"] == source][:10]
        others = [row for row in found if row["source"] != source]
        verdicts = judged(others + few, params)
        print(told(f"ten of {source} among the others", [v for row, v in verdicts.items() if row >= len(others)], len(few)))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
