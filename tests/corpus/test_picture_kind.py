"""Labels that the picture contradicts: found without a picture vouching for itself, and hardly ever where the label is right."""

import numpy as np
import pytest
from PIL import Image

from corpus import index, picture_kind, quality
from corpus.measures import Measuring
from corpus.params import ModalityParams, QualityParams
from corpus.readers import records
from corpus.readers.source import Source
from corpus.record import Rejection

PARAMS = ModalityParams()


@pytest.fixture(scope="module")
def rows(shared_data):
    """Index rows of real pictures of five modalities, one a picture."""
    folder, params = shared_data / "unimed-real", QualityParams(max_side=256)
    wanted = {"busi": "", "kermany_cxr": "", "isic2017": "", "bccd": "", "slake": ""}
    read = [r for r in records.read(Source(folder, "unimed-real")) if not isinstance(r, Rejection) and r.source in wanted]
    outcomes = [quality.examine(record, params, b"salt") for record in read[::2]]
    return [index.row(outcome[-1]) for outcome in outcomes if not isinstance(outcome, Rejection)]


def judged(rows, params=PARAMS):
    return {v.row: v for v in picture_kind.disagreements(index.read(index.to_bytes(rows), "all"), params)}


def test_right_labels_stay(rows):
    verdicts = judged(rows)
    assert len(rows) > 300 and not any(v.certain for v in verdicts.values()) and len(verdicts) <= 0.01 * len(rows)


def test_swapped_labels_are_found(rows):
    rng = np.random.default_rng(0)
    wrong = rng.choice(len(rows), 20, replace=False)
    others = {"Ultrasound": "CT", "CXR": "Dermoscopy", "Dermoscopy": "CXR", "Microscopy": "Ultrasound", "CT": "Microscopy", "MRI": "CXR"}
    changed = [row | {"modality": others[row["modality"]]} if i in wrong else row for i, row in enumerate(rows)]
    verdicts = judged(changed)
    assert len(verdicts.keys() & set(wrong)) >= 18 and sum(verdicts[i].certain for i in verdicts.keys() & set(wrong)) >= 15
    assert not any(v.certain for row, v in verdicts.items() if row not in wrong)
    assert all(v.looks_like == picture_kind.kind(rows[row]["modality"]) for row, v in verdicts.items() if row in wrong and v.certain)


def test_a_chest_x_ray_may_be_called_an_x_ray(rows):
    chests = [i for i, row in enumerate(rows) if row["modality"] == "CXR"][:5]
    assert not judged([row | {"modality": "X-ray"} if i in chests else row for i, row in enumerate(rows)]).keys() & set(chests)


def test_a_source_of_its_own_kind_is_for_a_person(rows):
    """Pictures that all seem mislabelled are unknown to the classifier, and a modality it never saw is not judged."""
    cells = [row | {"source": "strange", "modality": "CT"} if row["modality"] == "Microscopy" else row for row in rows]
    strange = [v for row, v in judged(cells).items() if cells[row]["source"] == "strange"]
    assert not any(v.certain for v in strange)
    assert not judged([row | {"modality": "OCT"} if i == 0 else row for i, row in enumerate(rows)]).get(0)


def test_of_kinds_that_look_the_same_nothing_is_said(rows):
    """Labels that no picture bears out: half of the chests are called otherwise."""
    rng, chests = np.random.default_rng(1), [row for row in rows if row["modality"] == "CXR"]
    mixed = [row | {"modality": str(rng.choice(["CT", "MRI"], p=[0.7, 0.3]))} for row in chests]
    assert not judged(mixed)


def test_equal_indexes_give_equal_verdicts_and_nothing_gives_none(rows):
    assert judged(rows) == judged(rows)
    assert judged([]) == {} and judged([row | {"features": None} for row in rows[:40]]) == {}


def test_grey_stored_as_rgb_is_measured_as_grey():
    rng = np.random.default_rng(0)
    for side in (64, 90, 131, 300):
        grey = Image.fromarray(rng.integers(0, 256, (side, side + 7), dtype=np.uint8))
        measuring = Measuring()
        known = [measuring.add(picture) for picture in (grey, grey.convert("RGB"))]
        measuring.finish()
        assert known[0] == known[1] and known[0].keys() == {"entropy", "look", "features"}
