"""Fields of tables that are not as they should be: lists for texts, broken text, paths from elsewhere, labels that are none."""

import json

import numpy as np
import pytest

from corpus.record import Unreadable
from tests.corpus import layouts
from tests.corpus.test_readers import read

MANY = [["no", "none"], {"text": "yes"}, [["yes"]], [{"type": "text", "text": "yes"}]]


def _with_answers(root, format, answers):
    """A file in which the questions about one picture have these answers, then "right"."""
    answers = [*answers, "right"]
    questions = [{"question": f"Where {n}?", "answer": said} for n, said in enumerate(answers)]
    makers = {
        "records": lambda: layouts.jsonl([{"image": "a.png", "qa": [said]} for said in questions], root / "records.jsonl"),
        "unimedvl-jsonl": lambda: layouts.jsonl([{"input_img": ["a.png"], "message": layouts.talk("Where?", said)} for said in answers], root / "a.jsonl"),
        "slake": lambda: layouts.dump([layouts.slake_row(1, **said) for said in questions], root / "train.json"),
        "vqa-rad": lambda: layouts.dump([layouts.vqa_rad_row(1, **said) for said in questions], root / "rad.json"),
        "omni-med-vqa": lambda: layouts.dump([layouts.omni_row("a.png", "Where?", ["right", "left"], said) for said in answers], root / "Demo.json"),
    }
    return makers[format]()


@pytest.mark.parametrize("format", ["records", "unimedvl-jsonl", "slake", "vqa-rad", "omni-med-vqa"])
def test_a_list_is_no_text(tmp_path, format):
    records, aside = read(_with_answers(tmp_path, format, MANY), format)
    assert [t.answer for r in records for t in r.turns] == ["right"]
    assert [r.reason for r in aside] == ["malformed-record"] * len(MANY) and "a list or mapping where a text belongs" in aside[0].detail


@pytest.mark.parametrize("format", ["records", "unimedvl-jsonl", "slake", "vqa-rad", "omni-med-vqa"])
def test_a_list_of_one_is_that_one_and_a_question_without_an_answer_is_counted(tmp_path, format):
    records, aside = read(_with_answers(tmp_path, format, [["right"], [], None, "-"]), format)
    assert not aside and [t.answer for r in records for t in r.turns] == ["right", "right"] and sum(r.left_out for r in records) == 3


@pytest.mark.parametrize("format", ["vqa-rad", "path-vqa"])
def test_lists_and_pictures_that_are_not_there_in_parquet(tmp_path, format):
    answers = [(0, ["right"]), (0, ["no", "none"]), (0, None), (1, ["no", "none"])]
    rows = [{"image": layouts.encoded(n), "question": "Where?", "answer": said} for n, said in answers]
    (record,), aside = read(layouts.table(rows, tmp_path / format / "train-0.parquet"), format)
    assert [t.answer for t in record.turns] == ["right"] and record.left_out == 1
    assert [(r.where, r.reason) for r in aside] == [(f"train-0.parquet:{n}", "malformed-record") for n in (1, 3)]
    rows = [{"image": {"bytes": None, "path": None}, "question": "What?", "answer": said} for said in ("one", "two")]
    assert [r.where for r in read(layouts.table(rows, tmp_path / format / "test-0.parquet"), format)[1]] == ["test-0.parquet:0", "test-0.parquet:1"]


@pytest.mark.parametrize("format, row", [("slake", layouts.slake_row), ("vqa-rad", layouts.vqa_rad_row)])
def test_a_picture_of_which_nothing_is_left_is_told_once(tmp_path, format, row):
    file = layouts.dump([row(1, "Where?", ["a", "b"]), row(2, "Where?", "There.")], tmp_path / "train.json")
    records, aside = read(file, format)
    assert len(records) == 1 and [(r.where, r.detail) for r in aside] == [("train.json:0", "not a record: a list or mapping where a text belongs")]


@pytest.mark.parametrize("format", ["path-vqa", "vqa-rad"])
def test_whole_numbers_that_a_table_made_fractions_are_whole(tmp_path, format):
    rows = [{"image": layouts.encoded(0), "question": f"How many {n}?", "answer": said} for n, said in enumerate([3.0, None, 0.0, 2.5])]
    (record,), _ = read(layouts.table(rows, tmp_path / format / "train.parquet"), format)
    assert [t.answer for t in record.turns] == ["3", "0", "2.5"]


@pytest.mark.parametrize("named, kinds", {"CLOSED ": "CC", "closed-ended": "CC", "OPEN": "OO", "Open-Ended": "OO", "yes/no": "CO", "": "CO"}.items())
def test_how_a_question_is_answered_may_be_called_otherwise(tmp_path, named, kinds):
    rows = [layouts.vqa_rad_row(1, f"Is it {said}?", said, answer_type=named) for said in ("yes", "left")]
    (record,), _ = read(layouts.dump(rows, tmp_path / "rad.json"), "vqa-rad")
    assert "".join(t.kind[0] for t in record.turns) == kinds


@pytest.mark.parametrize("message", [{"from": "human", "value": "Which?"}, [["human", "Which?"]], ["Which?"], 7])
def test_a_message_that_is_no_list_of_mappings_is_told(tmp_path, message):
    _, (aside,) = read(layouts.jsonl([{"input_img": ["a.png"], "message": message}], tmp_path / "a.jsonl"), "unimedvl-jsonl")
    assert aside.detail == "not a record: `message` is not a list of mappings"


@pytest.mark.parametrize("named", ["EN", "en-US", " en", "", None])
def test_slake_may_name_its_languages_otherwise(tmp_path, named):
    rows = [layouts.slake_row(1, "Where?", "Left", q_lang=named), layouts.slake_row(1, "在哪里?", "左", q_lang="ZH")]
    (record,), _ = read(layouts.dump(rows, tmp_path / "train.json"), "slake")
    assert [t.answer for t in record.turns] == ["Left"] and record.left_out == 1


def test_a_caption_of_several_is_told(tmp_path):
    rows = [{"image": "a.png", "caption": ["CT.", "A CT."]}, {"image": "a.png", "caption": ["CT."]}]
    (record,), (aside,) = read(layouts.jsonl(rows, tmp_path / "records.jsonl"), "records")
    assert record.caption == "CT." and aside.reason == "malformed-record"


@pytest.mark.parametrize("format", ["records", "unimedvl-jsonl", "unimed-5m", "slake", "vqa-rad", "omni-med-vqa"])
def test_half_a_surrogate_pair_is_an_undecodable_character(tmp_path, format):
    if format == "unimed-5m":
        file = layouts.table([{"input_img": "a.png", "message": json.dumps(layouts.talk("Where?", "on the \ud83d right"))}], tmp_path / "a.parquet")
    else:
        file = _with_answers(tmp_path, format, [])
        file.write_text(file.read_text().replace('"right"', r'"on the \ud83d right"'))
    record = read(file, format)[0][0]
    told = json.dumps([record.turns, record.labels, record.patient, record.id, record.where], ensure_ascii=False)
    assert told.encode() and record.turns[0].answer == "on the \ufffd right" and record.labels["undecodable_characters"] >= 1


def test_half_a_surrogate_pair_in_other_fields(tmp_path):
    row = {"image": "\udc00.png", "id": "\ud83d", "labels": {"\ud83d": ["\ud83d"]}, "caption": "A whole one: \U0001f600."}
    (record,), _ = read(layouts.jsonl([row], tmp_path / "records.jsonl"), "records")
    assert (record.id, record.patient, record.caption) == ("\ufffd", "\ufffd", row["caption"]) and record.labels == {"\ufffd": ["\ufffd"], "undecodable_characters": 4}
    assert record.where == "records.jsonl:1 \ufffd.png"


def test_bytes_that_are_not_utf8_in_parquet(tmp_path):
    rows = [{"image": {"bytes": layouts.encoded(n), "path": "a.png"}, "question": "What?", "answer": "37 Q"} for n in (7, 8)]
    file = layouts.table(rows, tmp_path / "path-vqa" / "test-0.parquet")
    file.write_bytes(file.read_bytes().replace(b"37 Q", b"37 \xb0"))
    records, aside = read(file, "path-vqa")
    assert not aside and [r.turns[0].answer for r in records] == ["37 \ufffd"] * 2 and records[0].labels == {"undecodable_characters": 1}
    file = layouts.table([{"input_img": [{"path": "Q.png"}], "message": layouts.talk("What?", "37 Q")}], tmp_path / "a.parquet")
    file.write_bytes(file.read_bytes().replace(b"37 Q", b"37 \xb0"))
    assert read(file, "unimed-5m")[0][0].turns[0].answer == "37 \ufffd"


def test_neither_a_patient_nor_a_group_is_split(tmp_path):
    said = [{"patient": "P2", "group": "G"}, {"patient": "P1", "group": "G"}, {"patient": "P1"}, {"group": "G"}, {"patient": "P2", "group": "H"}, {"group": "H"}, {"patient": "P3"}, {"group": "P1"}, {"patient": "P4", "group": None}]
    file = layouts.jsonl([{"image": f"{n}.png"} | row for n, row in enumerate(said)], tmp_path / "records.jsonl")
    assert [r.patient for r in read(file, "records")[0]] == ["P1"] * 6 + ["P3", "P1", "P4"]


@pytest.mark.parametrize("format, name", [("records", "records.jsonl"), ("unimedvl-jsonl", "a.jsonl")])
def test_one_patient_however_it_is_written(tmp_path, format, name):
    said = [0, "0", 0.0, "0 ", ["0"], [0.0], "-", None, "", "P 1", ["P  1"], ["0", "1"], {"0": 1}]
    rows = [{"image": f"{n}.png", "input_img": [f"{n}.png"], "message": layouts.talk("What?", "A"), "patient": patient} for n, patient in enumerate(said)]
    records, aside = read(layouts.jsonl(rows, tmp_path / name), format)
    assert [r.patient for r in records] == ["0"] * 6 + ["6.png", "7.png", "8.png", "P 1", "P 1"] and [r.reason for r in aside] == ["malformed-record"] * 2


def test_groups_and_ids_may_be_numbers(tmp_path):
    rows = [{"patient": 2.0, "group": 0, "id": 0}, {"patient": "1", "group": "0", "id": 7.0}, {"group": 0.0, "id": "-"}, {"patient": ["a", "b"], "group": 0}, {"id": ["a", "b"]}]
    records, aside = read(layouts.jsonl([{"image": f"{n}.png"} | row for n, row in enumerate(rows)], tmp_path / "records.jsonl"), "records")
    assert [(r.id, r.patient) for r in records] == [("0", "1"), ("7", "1"), ("2.png", "1")] and [r.reason for r in aside] == ["malformed-record"] * 2


@pytest.mark.parametrize("stray", [(0,), (3,), (0, 1), (1, 3)])
def test_a_quotation_mark_that_is_not_closed_swallows_no_rows(tmp_path, stray):
    rows = [layouts.gmai_row(n, n, question="Q") for n in range(4)] + [layouts.gmai_row(4, 4, question='What\tis "this"\nthen?'), layouts.gmai_row(5, 5, split="VAL\n")]
    lines = layouts.gmai(tmp_path / "VAL.tsv", rows).read_text().splitlines(keepends=True)
    (tmp_path / "VAL.tsv").write_text("".join(line.replace("\tQ\t", '\t"Q\t') if n - 1 in stray else line for n, line in enumerate(lines)))
    records, aside = read(tmp_path / "VAL.tsv", "gmai-mmbench")
    assert not aside and [r.labels["questions"][0]["question"] for r in records] == ['"Q' if n in stray else "Q" for n in range(4)] + ['What is "this" then?', "What is shown?"]


def test_a_bad_split_of_medmnist_is_told_and_the_others_are_read(tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.array([[0], [1]])
    odd = {"val_images": np.array([None, None]), "val_labels": labels, "test_images": images, "extra_images": images, "extra_labels": labels}
    np.savez(tmp_path / "pneumoniamnist.npz", train_images=images, train_labels=labels, **odd)
    records, aside = read(tmp_path, "med-mnist")
    told = {r.where.split(":")[1]: r.detail for r in aside if r.reason == "unreadable-file"}
    assert len(records) == 2 and told == {"val": "val_images cannot be read (ValueError)", "test": "a split without labels", "extra": "arrays of no known split"}
    np.savez(tmp_path / "pneumoniamnist.npz", train_images=images, train_labels=labels[:1], validation_images=images, validation_labels=labels)
    records, aside = read(tmp_path, "med-mnist")
    assert [r.split for r in records] == ["val", "val"] and [r.reason for r in aside] == ["unreadable-file", "altered-mirror"]


def test_a_finding_is_there_or_not(tmp_path):
    labels = np.array([[0] * 14, [1] * 14, [2] * 14])
    np.savez(tmp_path / "chestmnist.npz", train_images=np.zeros((3, 28, 28), np.uint8), train_labels=labels)
    records, aside = read(tmp_path, "med-mnist")
    assert len(records) == 2 and [(r.where, r.reason) for r in aside[1:]] == [("chestmnist.npz:train:2", "malformed-record")]


@pytest.mark.parametrize("path", [r"C:\Users\Jane Doe\a.png", "C:/Users/Jane Doe/a.png", r"\\Jane Doe\a.png", "/home/Jane Doe/a.png", "~Jane Doe/a.png", "x/../../Jane Doe/a.png", r"x\..\..\Jane Doe\a.png", "file:///Jane Doe/a.png"])
def test_of_a_path_that_leads_elsewhere_only_the_name_is_told(tmp_path, path):
    layouts.jsonl([{"image": path, "id": "1"}], tmp_path / "records.jsonl")
    layouts.dump([layouts.slake_row(1, "What?", "A", img_name=path)], tmp_path / "train.json")
    layouts.dump([layouts.vqa_rad_row(1, "What?", "A", image_name=path)], tmp_path / "rad.json")
    layouts.dump([layouts.omni_row("", "What?", ["A", "B"], "A", image_path=path)], tmp_path / "Demo.json")
    assert {r.where for r in read(tmp_path, "auto")[0]} == {"records.jsonl:1 a.png", "train.json:a.png", "rad.json:a.png:train", "Demo.json:a.png"}


def test_a_picture_in_place_of_its_path_is_not_told_whole(tmp_path):
    file = layouts.jsonl([{"image": layouts.base64_text(1)}, {"image": "folder a/b.png"}], tmp_path / "records.jsonl")
    long, short = (r.where for r in read(file, "records")[0])
    assert len(long) < 300 and short == "records.jsonl:2 folder a/b.png"


@pytest.mark.parametrize("path", ["images/a.jfif", "images/a", "a.JP2", r"images\a", "/images/a.dcm"])
def test_a_path_without_a_usual_suffix_is_a_path(tmp_path, path):
    layouts.jsonl([{"input_img": [path], "message": layouts.talk("What?", "A")}], tmp_path / "a.jsonl")
    (record,), _ = read(tmp_path / "a.jsonl", "unimedvl-jsonl")
    with pytest.raises(Unreadable) as error:
        record.images[0]()
    assert error.value.reason == "missing-image"


def test_a_number_is_an_attribution(tmp_path):
    layouts.table([{"input_img": layouts.base64_text(0), "message": layouts.talk("What?", "A"), "attribution": 5}], tmp_path / "a.parquet")
    layouts.jsonl([{"image": "a.png", "caption": "CT.", "attribution": ["me"], "source": 7}], tmp_path / "records.jsonl")
    assert {(r.source, r.attribution) for r in read(tmp_path, "auto")[0]} == {("here", "5"), ("7", "me")}


@pytest.mark.parametrize("nothing", ["\u200b", "\u200b\ufeff\u2060", "\0\0", "\u00a0 \u3000"])
def test_characters_that_show_nothing_are_no_text(tmp_path, nothing):
    layouts.save(0, tmp_path / "0.png")
    row = {"image": "0.png", "caption": nothing, "qa": [{"question": "What?", "answer": nothing}, {"question": "Where?", "answer": f"Here{nothing}"}]}
    ((record,), aside) = read(layouts.jsonl([row], tmp_path / "records.jsonl"), "records")
    assert not aside and record.caption is None and [turn.question for turn in record.turns] == ["Where?"] and record.left_out == 1


@pytest.mark.parametrize("field, value, told", [("qa", {"question": "Q?"}, "`qa` is not a list"), ("qa", ["Q?"], "`qa` is not a list"), ("labels", ["lung"], "`labels` is not a mapping"), ("image", None, "`image` is not a path")])
def test_what_is_wrong_with_a_line_is_told(tmp_path, field, value, told):
    layouts.jsonl([{"image": "a.png", "caption": "A slide."} | {field: value}], tmp_path / "records.jsonl")
    assert [told in r.detail for r in read(tmp_path / "records.jsonl", "records")[1]] == [True]


def test_a_list_of_one_picture_and_languages_of_countries(tmp_path):
    asked = [{"question": f"{lang}?", "answer": "yes", "lang": lang} for lang in ("en-US", "EN", "en_GB", "de-CH", None)]
    layouts.jsonl([{"image": ["a.png"], "qa": asked}], tmp_path / "records.jsonl")
    (record,), _ = read(tmp_path / "records.jsonl", "records")
    assert [t.question for t in record.turns] == ["en-US?", "EN?", "en_GB?", "None?"] and record.left_out == 1 and record.images[0].relative == "a.png"
