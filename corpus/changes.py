"""What changed from one release to another, sample by sample, told from their indexes."""

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from corpus import index

EXAMPLES = 5


@dataclass(frozen=True)
class Changes:
    """Samples by what became of them, with a few ids each; `groups` counts by source, task, modality and split, `edits` edited ones by what is new about them."""

    added: int
    removed: int
    edited: int
    unchanged: int
    bytes_added: int
    bytes_removed: int
    patients_added: int
    patients_removed: int
    moved: dict[str, int] = field(default_factory=dict)
    edits: dict[str, int] = field(default_factory=dict)
    groups: dict[str, dict[str, int]] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict:
        return asdict(self)


def compare(before: pa.Table, after: pa.Table) -> Changes:
    """Changes from one index to the other; a sample is the same sample by its id."""
    (ids, contents), (new_ids, new_contents) = ((index_ids(table), index.column(table, "content")) for table in (before, after))
    _, old_rows, new_rows = np.intersect1d(ids, new_ids, assume_unique=True, return_indices=True)
    edited = contents[old_rows] != new_contents[new_rows]
    added, removed = _others(len(new_ids), new_rows), _others(len(ids), old_rows)
    gone, come = before.take(pa.array(removed)), after.take(pa.array(added))
    old, new = before.take(pa.array(old_rows[edited])), after.take(pa.array(new_rows[edited]))
    edits = _edits(old, new)
    splits = zip(old["split"].to_pylist(), new["split"].to_pylist())
    patients, new_patients = ({*table["patient"].unique().to_pylist()} for table in (before, after))
    return Changes(
        added=len(added),
        removed=len(removed),
        edited=int(edited.sum()),
        unchanged=int((~edited).sum()),
        bytes_added=_bytes(come) + _bytes(new.filter(pa.array(edits["picture"]))),
        bytes_removed=_bytes(gone) + _bytes(old.filter(pa.array(edits["picture"]))),
        patients_added=len(new_patients - patients),
        patients_removed=len(patients - new_patients),
        moved=dict(sorted(Counter(f"{a} -> {b}" for a, b in splits if a != b).items())),
        edits={name: int(count) for name, mask in edits.items() if (count := mask.sum())},
        groups={kind: _groups(table) for kind, table in (("added", come), ("removed", gone))},
        examples={
            "added": come["id"][:EXAMPLES].to_pylist(),
            "removed": gone["id"][:EXAMPLES].to_pylist(),
            "edited": after["id"].take(pa.array(new_rows[edited][:EXAMPLES])).to_pylist(),
        },
    )


def _edits(old: pa.Table, new: pa.Table) -> dict[str, np.ndarray]:
    """What is new about edited samples, as masks; `other` is what an index does not tell, such as labels or the attribution."""

    def differs(name: str) -> np.ndarray:
        return _numbers(old, name) != _numbers(new, name)

    words = differs("caption") & (_numbers(old, "caption") != 0)  # of texts an older index tells none
    alone = index.of_task(new, "text")
    found = {"picture": differs("picture") | differs("others"), "caption": words & ~alone}
    found |= {name: _words(old, name) != _words(new, name) for name in ("modality", "split", "license", "patient")}
    # Questions are told apart by their picture too.
    found["questions"] = differs("answered") | (differs("asked") & ~found["picture"]) | (words & alone)
    return found | {"other": ~np.any(list(found.values()), axis=0)}


def _words(table: pa.Table, name: str) -> np.ndarray:
    return table[name].cast(pa.string()).to_numpy()


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of hashes; of lists, the hash of each. Indexes from before there was a column have nulls in it: none is 0."""
    values = table[name].combine_chunks()
    if not pa.types.is_list(values.type):
        return values.to_numpy(zero_copy_only=False)
    counts = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.zeros(len(counts), dtype=np.uint64)
    # Each place multiplies by another odd number, so that an order tells, too.
    np.add.at(found, np.repeat(np.arange(len(counts)), counts), values.flatten().to_numpy(zero_copy_only=False) * (2 * place.astype(np.uint64) + 1))
    return found


def index_ids(table: pa.Table) -> np.ndarray:
    """The ids as 64-bit hashes."""
    return np.array([index.hash64(identifier) for identifier in table["id"].to_pylist()], dtype=np.uint64)


def _others(count: int, rows: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isin(np.arange(count), rows))


def _bytes(table: pa.Table) -> int:
    return int(index.column(table, "bytes").sum()) if len(table) else 0


def _groups(table: pa.Table) -> dict[str, int]:
    columns = ["source", "task", "modality", "split"]
    return dict(sorted(Counter(" / ".join(group) for group in zip(*(table[c].to_pylist() for c in columns))).items()))
