"""Look-alikes: resized and recoded copies across splits and sources."""

import io

import numpy as np
from PIL import Image

from corpus import index, near, quality
from corpus.params import QualityParams
from corpus.sample import Turn
from corpus.settle import settle
from tests.corpus.test_releases import SALT, record


def test_banding_finds_what_comparing_all_finds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (2, 400), dtype=np.uint64)
    for copy in range(200, 300):
        flips = [np.uint64(np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, rng.integers(1, 9), replace=False).astype(np.uint64))) for _ in range(2)]
        hashes[:, copy] = hashes[:, copy - 200] ^ np.array(flips, dtype=np.uint64)
    apart = [np.bitwise_count(side[:, None] ^ side[None]) for side in hashes]
    everything = np.argwhere(np.triu((apart[0] <= 6) & (apart[1] <= 6), 1))
    np.testing.assert_array_equal(near.pairs(*hashes, 6), everything)
    assert len(everything) > 20 and not len(near.pairs(hashes[0][:1], hashes[1][:1], 6))


def scene(seed: int, size: int = 96) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def recoded(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.resize((80, 80)).save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def settled(*records):
    samples = [sample for r in records for sample in quality.examine(r, QualityParams(), SALT)]
    return settle(index.read(index.to_bytes([index.row(s) for s in samples]), "s"), 6).aside


def test_a_recoded_copy_in_another_split_or_source_is_kept_aside():
    original = record(0, images=(lambda: scene(1),), split="train")
    copies = [record(1, images=(lambda: recoded(scene(1)),), split=split, source=source) for split, source in (("test", "made"), ("train", "elsewhere"))]
    for copy, where in zip(copies, ("made/r000", "elsewhere/r001")):
        aside = settled(original, copy)
        assert [(r.reason, r.where) for r in aside] == [("near-duplicate", f"{where}#u"), ("near-duplicate", f"{where}#g")]


def test_words_without_a_picture_are_told_once_and_never_across_splits():
    said = [Turn("What is ground glass?", "A haze.", "OPEN"), Turn("And a node?", "A lump.", "OPEN")]
    talks = [record(n, images=(), caption=None, turns=tuple(turns), split=split) for n, (turns, split) in enumerate([(said, "train"), (said, "train"), (said, "test"), (said[:1], "train")])]
    assert [(r.reason, r.where, r.detail) for r in settled(*talks)] == [("duplicate", f"made/r00{n}#t", "the same words as made/r002 (test)") for n in (0, 1)]


def test_other_pictures_and_slices_of_one_patient_are_no_copies():
    first = record(0, images=(lambda: scene(1),))
    assert settled(first, record(1, images=(lambda: scene(2),), split="test")) == []
    assert settled(first, record(1, images=(lambda: recoded(scene(1)),), patient=first.patient)) == []


def test_one_id_of_two_patients_is_no_reason_to_keep_a_picture_twice():
    one, other = record(0, caption=None, split="train", patient="one"), record(0, turns=(), split="test", patient="other")
    assert [(r.reason, r.where) for r in settled(one, other)] == [("duplicate", "made/r000#u")]
