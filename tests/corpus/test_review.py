"""What people decide: kept once, followed by the next release, and only for what they saw."""

import io
from dataclasses import replace

import pytest
from PIL import Image, ImageDraw

from corpus import forgotten, index, quality, release, review, shards
from corpus.patients import patient_key
from corpus.readers.pictures import PictureBytes
from corpus.sample import Turn
from infra.store import corpus_store
from tests.corpus.test_releases import PARAMS, SALT, live, record, take_in


def with_name(name: str) -> PictureBytes:
    """An ultrasound-like picture with a name burned in."""
    picture = Image.effect_noise((220, 220), 12)
    ImageDraw.Draw(picture).text((8, 8), name, "white", font_size=20)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return PictureBytes(buffer.getvalue(), 10**6)


def slightly_other(shown) -> PictureBytes:
    """A record's picture with one pixel changed."""
    twin = Image.open(io.BytesIO(shown.images[0].data)).copy()
    twin.putpixel((0, 0), 1)
    buffer = io.BytesIO()
    twin.save(buffer, "PNG")
    return PictureBytes(buffer.getvalue(), 10**6)


def named(number: int, name: str = "SMITH, JANE"):
    return record(number, images=(with_name(name),), modality="Ultrasound", caption=f"Ultrasound image number {number}.")


def entry(taken: dict) -> dict:
    return {key: taken[key] for key in ("name", "shards", "held", "stale", "removed", "quarantine")}


def contents(taken: dict, record_id: str) -> dict[str, int]:
    store = corpus_store()
    tables = [index.read(store.get(s["index_key"]), s["shard"]) for s in [*taken["held"], *taken["shards"]]]
    return {r["id"]: r["content"] for t in tables for r in t.select(["id", "content"]).to_pylist() if r["id"].startswith(f"{record_id}#")}


def decide(taken: dict, record_id: str, accept: bool, who: str = "anna", **more) -> dict:
    return review.decide(corpus_store(), record_id, contents(taken, record_id), "key of a patient", accept, who, "looked at it", **more)


def build(taken: dict, out) -> tuple[dict, set[str], list]:
    """A release by all decisions: its card, the ids of its samples, and what was kept aside."""
    store = corpus_store()
    card = release.build([entry(taken)], out, PARAMS, store, SALT, lambda line: None, decisions=review.read(store, review.pinned(store)))
    return card, {sample.id for sample in samples(out)}, shards.read_quarantine((out / "quarantine.parquet").read_bytes())


def samples(out):
    """All that lies in a release's shards, whether it counts or not."""
    return [s for path in sorted((out / "shards").rglob("*.parquet")) if ".index." not in path.name for s in shards.unpack(path.read_bytes())]


@pytest.fixture
def taken(s3, request):
    """Sixty good records and two with a name burned in."""
    records = [replace(r, source=request.node.name) for r in [*map(record, range(60)), named(60), named(61, "DOE, JOHN"), record(62, caption="MRI of the head.")]]
    return take_in(request.node.name.replace("_", "-"), records)


def test_what_is_held_back_is_in_no_shard_of_the_source(taken, request):
    assert taken["reasons"] == {"burned-in-text": 2, "caption-contradicts": 1} and taken["samples"]["kept"] == 120
    assert len(contents(taken, f"{request.node.name}/r060")) == 2
    assert not {"Ultrasound"} & {*live(taken)["modality"].to_pylist()}
    aside = shards.read_quarantine(corpus_store().get(taken["quarantine"]))
    assert [r.record.rpartition("/")[2] for r in aside] == ["r060", "r061", "r062"]


def test_an_accepted_one_comes_back_alone(taken, tmp_path, request):
    name = request.node.name
    _, before, aside = build(taken, tmp_path / "r")
    assert f"{name}/r060#g" not in before and len(aside) == 3
    assert decide(taken, f"{name}/r060", True)["how"] == "decided"
    card, after, aside = build(taken, tmp_path / "r")
    assert after - before == {f"{name}/r060#u", f"{name}/r060#g"} and card["samples"] == 122
    assert [r.record for r in aside] == [f"{name}/r061", f"{name}/r062"] and not any("r061" in s.id for s in samples(tmp_path / "r"))
    assert build(taken, tmp_path / "r")[0] == card


def test_a_rejected_one_goes_and_the_source_is_untouched(taken, tmp_path, request):
    name = request.node.name
    decide(taken, f"{name}/r007", False)
    card, _, aside = build(taken, tmp_path / "r")
    assert card["samples"] == 118 and card["reasons"]["rejected-by-reviewer"] == 2
    assert "by anna on" in next(r.detail for r in aside if r.reason == "rejected-by-reviewer") and "looked at it" in aside[-1].detail


def test_a_judgement_that_a_person_confirms_is_told_as_the_persons(taken, tmp_path, request):
    name = request.node.name
    decide(taken, f"{name}/r060", False)
    card, _, aside = build(taken, tmp_path / "r")
    assert card["reasons"] == {"rejected-by-reviewer": 1, "burned-in-text": 1, "caption-contradicts": 1}
    found = next(r for r in aside if r.reason == "rejected-by-reviewer")
    assert found.record == f"{name}/r060" and "by anna on" in found.detail and "looked at it (burned-in-text)" in found.detail
    changed = take_in(taken["name"], [replace(r, source=name) for r in [*map(record, range(60)), named(60, "MILLER, ANN")]])
    assert build(changed, tmp_path / "r")[0]["reasons"] == {"burned-in-text": 1}


@pytest.mark.parametrize("apart", [False, True])
def test_a_look_alike_that_a_person_rejects_is_told_so(s3, tmp_path, request, apart):
    """Whether the look-alike is of the same source taken in, or of another."""
    name, store = f"alike-{apart}".lower(), corpus_store()
    first, second = record(2, seed=5, source=name), record(3, source=name, images=(slightly_other(record(2, seed=5)),))
    others = [record(n, source=name) for n in range(10, 60)]
    sources = [take_in(name, others), take_in(f"{name}-2", [first]), take_in(f"{name}-3", [second])] if apart else [take_in(name, [*others, first, second])]
    decide(sources[1] if apart else sources[0], f"{name}/r002", False)
    release.build([entry(source) for source in sources], tmp_path / "r", PARAMS, store, SALT, lambda line: None, decisions=review.read(store, review.pinned(store)))
    aside = shards.read_quarantine((tmp_path / "r" / "quarantine.parquet").read_bytes())
    assert [(r.reason, r.record, "(near-duplicate)" in r.detail) for r in aside] == [("rejected-by-reviewer", f"{name}/r002", True)] * 2


def test_the_first_of_two_reviewers_wins(taken, request):
    name = f"{request.node.name}/r061"
    assert decide(taken, name, False)["how"] == "decided"
    assert decide(taken, name, False, "ben") | {"how": ""} == decide(taken, name, False) | {"how": ""}
    with pytest.raises(review.AlreadyDecided, match="rejected by anna"):
        decide(taken, name, True, "ben")
    made = decide(taken, name, True, "ben", overrule=True)
    assert made["overruled"]["who"] == "anna" and decide(taken, name, True)["who"] == "ben"


def test_what_changed_since_was_not_decided(taken, tmp_path, request):
    """Another picture under an accepted name is not let out."""
    name = request.node.name
    decide(taken, f"{name}/r060", True)
    changed = take_in(taken["name"], [replace(r, source=name) for r in [*map(record, range(60)), named(60, "MILLER, ANN")]])
    _, ids, aside = build(changed, tmp_path / "r")
    assert not any("r060" in i for i in ids) and "burned-in-text" in [r.reason for r in aside]


def test_an_edited_record_is_decided_on_anew_however_often(taken, tmp_path, request):
    for edit in range(5):
        edited = record(7, caption=f"CT image, edit {edit}.", turns=(Turn("Which edit is this?", str(edit), "OPEN"),))
        changed = take_in(taken["name"], [replace(r, source=request.node.name) for r in (*map(record, range(7)), edited, *map(record, range(8, 60)))])
        assert build(changed, tmp_path / "r")[0]["samples"] == 120
        decide(changed, f"{request.node.name}/r007", False)
        assert build(changed, tmp_path / "r")[0]["samples"] == 118


@pytest.mark.parametrize("accepted", [True, False])
def test_of_a_sample_that_stayed_while_its_record_was_edited_the_last_word_counts(taken, tmp_path, request, monkeypatch, accepted):
    """Of two records, as what is decided is stored in an order of its own."""
    name, days = taken["name"], iter(range(1, 9))
    monkeypatch.setattr(review, "utc_now", lambda: f"2026-11-0{next(days)}")
    for caption, accept in (("CT image.", not accepted), ("CT image, read again.", accepted)):
        records = [record(n, caption=f"{caption} It is number {n}.") if n in (7, 8) else record(n) for n in range(60)]
        changed = take_in(name, [replace(r, source=request.node.name) for r in records])
        for number in (7, 8):
            decide(changed, f"{request.node.name}/r00{number}", accept)
    assert build(changed, tmp_path / "r")[0]["samples"] == (120 if accepted else 116)


def test_a_look_alike_that_a_person_accepts_comes_back(s3, tmp_path, request):
    name = request.node.name
    first = record(2, seed=5, source=name)
    others = [record(n, source=name) for n in range(10, 60)]
    taken = take_in(name.replace("_", "-"), [first, record(3, source=name, images=(slightly_other(first),)), *others])
    assert taken["reasons"] == {"near-duplicate": 2}
    decide(taken, f"{name}/r002", True)
    card, ids, aside = build(taken, tmp_path / "r")
    assert {f"{name}/r002#g", f"{name}/r003#g"} <= ids and card["samples"] == 104 and not aside


def test_a_forgotten_patient_is_gone_from_what_is_held_and_was_admitted(taken, tmp_path, request):
    name, store = request.node.name, corpus_store()
    decide(taken, f"{name}/r060", True)
    build(taken, tmp_path / "r")
    key = patient_key(SALT, name, "Jane Doe 60")
    after, _ = forgotten.without_patient(taken["name"], {key}, PARAMS, store)
    old = forgotten.holding({key}, store)
    assert not contents(after, f"{name}/r060") and len(contents(after, f"{name}/r061")) == 2
    assert any(key.startswith("review/admitted/") for key in old) and any(key.startswith("held/") for key in old)
    assert not any("r060" in i for i in build(after, tmp_path / "r")[1])


def test_a_header_that_says_so_is_not_for_a_person(s3):
    outcome = quality.examine(replace(named(1), labels={"burned_in": "YES"}), PARAMS.quality, SALT)
    assert outcome.reason == "burned-in-text" and not outcome.record and not hasattr(outcome, "samples")
