"""What is wrong with real data, as the readers and the quality control behind them meet it."""

import gzip
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from corpus import intake
from corpus.readers import formats, parquet
from corpus.readers.source import Source
from corpus.record import Unreadable
from tests.corpus import layouts, taking_in
from tests.corpus.test_readers import read


def take_in(path, format, **said):
    """(kept samples, reasons by where) of a source taken in."""
    taken = taking_in.take_in(formats if format == "auto" else formats.reader(format), Source(path, "here", **said))
    return taken.samples, {r.where: r.reason for r in taken.aside}


def test_vqa_rad_keeps_its_test_pictures_for_the_test(tmp_path):
    layouts.vqa_rad(tmp_path / "rad")
    kept, reasons = take_in(tmp_path / "rad", "vqa-rad", modality="CXR")
    assert {(s.split, s.turns[0].answer) for s in kept} == {("test", "No"), ("train", "right lobe")}
    assert set(reasons.values()) <= {"duplicate", "split-leakage"} and len(reasons) == 1


def test_slake_in_two_languages_keeps_its_test_pictures_for_the_test(tmp_path):
    layouts.slake(tmp_path / "slake-two")
    layouts.dump([layouts.slake_row(1, "这是什么?", "肺", q_lang="zh")], tmp_path / "slake-two" / "validate.json")
    kept, reasons = take_in(tmp_path / "slake-two", "slake")
    assert {s.split for s in kept} == {"test", "train"} and reasons["train.json:xmlab3/source.jpg"] == "no-text"
    assert reasons["validate.json:xmlab1/source.jpg"] == "no-text"


def test_shuffled_rows_about_one_picture_are_no_copies_of_each_other(tmp_path):
    """Training files are shuffled, and one picture is asked about and drawn; the same again is a copy, as is the picture of another patient."""
    known = {"modality": "HIS", "license": "CC0-1.0"}
    asked = [{"input_img": [{"path": f"{n}.png"}], "message": layouts.talk(f"<image>Question {q}?", f"Answer {q} {n}"), **known} for q in range(3) for n in (0, 1)]
    drawn = [{"output_img": [{"path": f"{n}.png"}], "main_task_type": "generation", "message": layouts.talk(f"Draw {n}.", "Drawn."), **known} for n in (0, 1)]
    for n, name in ((0, "0"), (1, "1"), (1, "copy")):
        layouts.save(n, tmp_path / f"{name}.png")
    copied = {"input_img": [{"path": "copy.png"}], "message": layouts.talk("<image>Question 9?", "Answer 9"), **known}
    layouts.jsonl([*asked, *drawn, asked[0], copied], tmp_path / "train.jsonl")
    kept, reasons = take_in(tmp_path, "unimedvl-jsonl")
    assert [t.answer for s in kept if s.task == "understanding" for t in s.turns] == [f"Answer {q} {n}" for q in range(3) for n in (0, 1)]
    assert sum(s.task == "generation" for s in kept) == 2
    assert reasons == {f"here/train.jsonl:{line}#u": "duplicate" for line in (9, 10)}


def test_no_picture_of_a_record_of_several_is_in_two_splits(tmp_path):
    for n in range(7):
        layouts.save(n, tmp_path / f"{n}.png")
        layouts.save(n, tmp_path / "again" / f"{n}.png")

    def row(split: str, *names: str, **more) -> dict:
        return {"input_img": [{"path": name} for name in names], "message": layouts.talk(f"What of {names}?", "This."), "modality": "HIS", "license": "CC0-1.0", "split": split, **more}

    rows = [
        row("train", "0.png", "1.png", "2.png"),
        row("train", "3.png", "4.png"),
        row("test", "again/1.png"),
        row("train", "5.png", output_img=[{"path": "6.png"}]),
        row("val", "again/5.png", "again/4.png"),
    ]
    layouts.jsonl(rows, tmp_path / "rows.jsonl")
    kept, reasons = take_in(tmp_path, "unimedvl-jsonl")
    assert [s.id for s in kept] == ["here/rows.jsonl:3#u", "here/rows.jsonl:5#u"]
    assert reasons == {"here/rows.jsonl:1#u": "split-leakage", "here/rows.jsonl:2#u": "duplicate", "here/rows.jsonl:4#i": "split-leakage"}


def test_parquet_splits_share_no_picture(tmp_path):
    layouts.image_questions(tmp_path / "path-vqa" / "train-0.parquet", (7, 8))
    layouts.image_questions(tmp_path / "path-vqa" / "test-0.parquet", (8, 9))
    kept, reasons = take_in(tmp_path / "path-vqa", "path-vqa", modality="Histopathology", license="CC0-1.0")
    assert sorted(s.split for s in kept) == ["test", "test", "train"] and len(reasons) == 1


def test_one_picture_with_two_labels_is_kept_aside(tmp_path):
    for label in ("malignant", "benign"):
        layouts.save(5, tmp_path / "busi" / label / "1.png")
    layouts.save(6, tmp_path / "busi" / "benign" / "2.png")
    kept, reasons = take_in(tmp_path / "busi", "image-folder", modality="Histopathology", license="CC0-1.0")
    assert {s.labels["folder"] for s in kept if s.task == "understanding"} == {"benign"} and list(reasons.values()).count("conflicting-labels") == 2


def test_a_folder_without_a_licence_is_kept_aside(tmp_path):
    layouts.image_folder(tmp_path / "photos")
    kept, reasons = take_in(tmp_path / "photos", "auto", modality="CXR")
    assert not kept and set(reasons.values()) == {"no-licence", "augmented-copy"}


@pytest.mark.parametrize("name", ["deformed_1.png", "a_barrdistorted_2.png", "90Rotated_3.png", "img-flipped-4.png", "augmented_5.png"])
def test_augmented_copies_are_told_by_name(tmp_path, name):
    layouts.save(0, tmp_path / name)
    assert [r.reason for r in read(tmp_path, "image-folder")[1]] == ["augmented-copy"]


@pytest.mark.parametrize("place", ["benign (0)_mask.png", "benign (0)_mask_1.png", "ISIC_1_Segmentation.png", "ISIC_1_superpixels.png", "xmlab1/mask.png", "train/masks/1.png", "Ground Truth/1.png", "gt/a/1.png"])
def test_masks_are_told_by_name(tmp_path, place):
    layouts.save(0, tmp_path / place)
    for plain in ("benign/benign (0).png", "unmasked/1.png", "face masks/1.png", "a_mask_b.png"):
        layouts.save(1, tmp_path / plain)
    records, aside = read(tmp_path, "image-folder")
    assert [(r.where, r.reason) for r in aside] == [(place, "label-picture")] and len(records) == 4


SPLITS = {"train": ["training", "Training Set", "trainset", "train_data", "train-images", "ISIC-2017_Training_Data", "stage1_train"], "val": ["validate", "eval", "Evaluation", "val set", "dev", "ISIC2018_Task3_Validation_Input"], "test": ["testing", "test-a", "test B", "test_1", "test2", "test split", "unseen test", "ISIC-2017_Test_v2_Data", "ISBI2016_ISIC_Part3B_Test_Data"]}


@pytest.mark.parametrize("folder, split", [(folder, split) for split, folders in SPLITS.items() for folder in folders])
def test_folders_of_splits(tmp_path, folder, split):
    layouts.save(0, tmp_path / folder / "1.png")
    (record,), _ = read(tmp_path, "image-folder")
    assert record.split == split and not record.turns


@pytest.mark.parametrize("folder", ["test tube", "valve", "trained", "dataset", "attest", "contest a", "testis", "evaluated", "val-de-grace"])
def test_folders_that_only_begin_like_a_split(tmp_path, folder):
    layouts.save(0, tmp_path / folder / "1.png")
    (record,), _ = read(tmp_path, "image-folder")
    assert record.split is None and record.turns[0].answer == folder


def test_a_truncated_and_an_absent_picture(tmp_path):
    layouts.slake(tmp_path)
    whole = (tmp_path / "imgs/xmlab1/source.jpg").read_bytes()
    (tmp_path / "imgs/xmlab1/source.jpg").write_bytes(whole[:600])
    (tmp_path / "imgs/xmlab2/source.jpg").unlink()
    reasons = []
    for record in read(tmp_path, "slake")[0]:
        try:
            record.images[0]()
        except Unreadable as error:
            reasons.append(error.reason)
    assert reasons == ["unreadable-image", "missing-image"]


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "a/../../secret.png", "nul\0.png", pytest.param("x" * 5000 + ".png", id="long")])
def test_no_path_leaves_the_folder(tmp_path, path):
    layouts.save(0, tmp_path / "secret.png")
    root = tmp_path / "source"
    layouts.dump([layouts.vqa_rad_row(1, "What?", "A", image_name=path)], root / "rad.json")
    layouts.jsonl([{"input_img": [{"path": path}], "message": layouts.talk("What?", "A")}], root / "train.jsonl")
    for format in ("vqa-rad", "unimedvl-jsonl"):
        for record in read(root, format)[0]:
            with pytest.raises(Unreadable) as error:
                record.images[0]()
            assert error.value.reason in ("path-outside-folder", "missing-image", "unreadable-image") and str(tmp_path) not in str(error.value)


def test_types_and_blanks(tmp_path):
    rows = [
        layouts.vqa_rad_row(1, "  How\tmany? ", 3, qid="7", answer_type=" closed"),
        layouts.vqa_rad_row(1, "Where?", "-"),
        layouts.vqa_rad_row(1, "Null?", "NULL"),
        layouts.vqa_rad_row(1, "Missing?", None),
        layouts.vqa_rad_row(1, None, "Lost"),
        layouts.vqa_rad_row(1, "Zero?", 0),
        {"question": "No picture", "phrase_type": "para"},
        "a string",
        None,
    ]
    (record,), aside = read(layouts.dump(rows, tmp_path / "rad.json"), "vqa-rad")
    assert [(t.question, t.answer, t.kind) for t in record.turns] == [("How many?", "3", "CLOSED"), ("Zero?", "0", "OPEN")]
    assert [(r.where, r.reason) for r in aside] == [(f"rad.json:{n}", "malformed-record") for n in (6, 7, 8)] and "image_name" in aside[0].detail


def test_bytes_that_are_not_utf8_and_a_byte_order_mark(tmp_path):
    file = layouts.gmai(tmp_path / "VAL.tsv", [layouts.gmai_row(0, 1, A="37 °C", answer="A")])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace("°".encode(), b"\xb0"))
    (record,), aside = read(file, "gmai-mmbench")
    assert not aside and record.turns[0].answer == "37 \ufffd C".replace(" C", "C") and record.labels["undecodable_characters"] == 2
    rows = [layouts.slake_row(1, "What, is it?", "a，b")]
    (tmp_path / "train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False).encode())
    assert read(tmp_path / "train.json", "slake")[0][0].turns[0].answer == "a，b"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_with_its_byte_order_mark(tmp_path, encoding):
    """As spreadsheets and PowerShell write text; read as something else, the pictures it names would be an image folder."""
    layouts.slake(tmp_path / "slake"), layouts.vqa_rad(tmp_path / "rad"), layouts.unimedvl(tmp_path / "uni"), layouts.gmai(tmp_path / "gmai.tsv")
    before = read(tmp_path, "auto")
    for file in (file for suffix in ("json", "jsonl", "tsv") for file in tmp_path.rglob(f"*.{suffix}")):
        file.write_bytes(("\ufeff" + file.read_text(encoding="utf-8")).encode(encoding))
    (records, aside), (meant, _) = read(tmp_path, "auto"), before
    assert not aside and [(r.id, r.turns, r.split, r.labels) for r in records] == [(r.id, r.turns, r.split, r.labels) for r in meant]


def test_byte_order_marks_where_files_were_joined(tmp_path):
    layouts.save(0, tmp_path / "0.png")
    line = json.dumps({"image": "0.png", "caption": "A slide."})
    (tmp_path / "records.jsonl").write_text(f"\ufeff{line}\n" * 3, encoding="utf-8")
    records, aside = read(tmp_path, "records")
    assert len(records) == 3 and not aside


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.readers.textfiles._LONGEST", 2**20)
    layouts.save(0, tmp_path / "0.png")
    (tmp_path / "records.jsonl.gz").write_bytes(gzip.compress(json.dumps({"image": "0.png", "caption": "A slide."}).encode() + b"\n" + bytes(2**26)))
    tracemalloc.start()
    records, aside = read(tmp_path, "records")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == 1 and [r.reason for r in aside] == ["unreadable-file"] and most < 2**24


def test_a_column_that_is_there_twice_is_told(tmp_path):
    """Which of the two is meant nobody knows."""
    twice = pa.Table.from_arrays([pa.array([layouts.encoded(0)]), *(pa.array([told]) for told in ("What?", "Yes", "No"))], names=["image", "question", "answer", "answer"])
    (tmp_path / "path-vqa").mkdir()
    pq.write_table(twice, tmp_path / "path-vqa" / "train.parquet")
    file = layouts.gmai(tmp_path / "VAL.tsv")
    file.write_bytes(file.read_bytes().replace(b"\tC\t", b"\tB\t", 1))
    records, aside = read(tmp_path, "auto")
    assert not records and sorted(r.detail for r in aside) == ["its column B is there more than once", "its column answer is there more than once"]


def test_chinese_paths_and_blanks_in_folder_names(tmp_path):
    layouts.omni(tmp_path / "全部 数据")
    records, _ = read(tmp_path / "全部 数据", "omni-med-vqa")
    assert len(records) == 2 and all(r.images[0]().size == (96, 96) for r in records)


def test_slake_with_windows_paths_keeps_patients_and_boxes(tmp_path):
    text = (layouts.slake(tmp_path) / "train.json").read_text()
    (tmp_path / "train.json").write_text(text.replace("/source", r"\\source"))
    _, chest, _, _ = read(tmp_path, "slake")[0]
    assert chest.patient == "xmlab1" and chest.labels["boxes"]


def test_boxes_without_an_area_are_left_out(tmp_path):
    layouts.slake(tmp_path)
    (tmp_path / "imgs/xmlab2/detection.json").write_text("[{]")
    held, chest, liver, _ = read(tmp_path, "slake")[0]
    assert chest.labels["boxes"] == [["Lung", 10.0, 12.0, 20.0, 30.0]] and "boxes" not in liver.labels


def test_image_modes_of_one_class(tmp_path):
    for number, (mode, suffix) in enumerate([("L", "png"), ("RGB", "jpg"), ("RGBA", "png"), ("P", "png"), ("1", "png"), ("CMYK", "jpg"), ("I;16", "png")]):
        picture = layouts.pictures()[number].convert("RGB")
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 200) if mode == "I;16" else picture.convert(mode)
        file = tmp_path / "modes" / "tissue" / f"{number}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, exif=_rotated() if suffix == "jpg" else None)
    kept, reasons = take_in(tmp_path / "modes", "image-folder", modality="Histopathology", license="CC0-1.0")
    assert not reasons and len([s for s in kept if s.task == "understanding"]) == 7 and {s.images[0].open().mode for s in kept} == {"L", "RGB"}


def _rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path):
    layouts.save(0, tmp_path / "a.png")
    (record,), _ = read(tmp_path, "image-folder", max_pixels=100)
    with pytest.raises(Unreadable, match="96x96"):
        record.images[0]()


@pytest.mark.parametrize(
    "format, name, text",
    [("records", "records.jsonl", ""), ("records", "records.jsonl", "\n \n"), ("unimedvl-jsonl", "a.jsonl", ""), ("slake", "train.json", "[]"), ("gmai-mmbench", "VAL.tsv", "image\tquestion\tA\tB\tl2-category\n")],
)
def test_a_file_of_nothing_is_told(tmp_path, format, name, text):
    layouts.save(0, tmp_path / "lung" / "a.png")
    (tmp_path / name).write_text(text)
    records, aside = read(tmp_path / name, format)
    assert not records and [(r.where, r.reason, r.detail) for r in aside] == [(name, "unreadable-file", "it holds no record")]
    if format == "records":
        # It may have named the pictures beside it.
        assert [(r.where, r.reason) for r in read(tmp_path, "auto")[1]] == [(name, "unreadable-file"), ("lung/a.png", "unnamed-picture")]


def test_what_python_writes_for_no_number_is_nothing(tmp_path):
    row = {"image": "a.png", "id": float("nan"), "patient": float("inf"), "labels": {"age": float("nan"), "boxes": [float("-inf"), 1.5]}, "qa": [{"question": "How many?", "answer": float("nan")}]}
    (record,), aside = read(layouts.jsonl([row], tmp_path / "records.jsonl"), "records")
    assert not aside and (record.id, record.patient, record.turns) == ("a.png", "a.png", ()) and record.labels == {"age": None, "boxes": [None, 1.5]}


@pytest.mark.parametrize(
    "line, told",
    [('{"image": "a.png', "not whole JSON: Unterminated string starting at character 11"), ("{'image': 1}", "not whole JSON: Expecting property name enclosed in double quotes at character 2"), ('{"image": 1} {}\n', "not whole JSON: Extra data at character 14"), ('{"id": ' + "9" * 5000 + "}", "JSON with a number of more digits than are read")]
    + [('{"a":' * levels + "1" + "}" * levels, "JSON nested deeper than 64 levels") for levels in (70, 100_000)],
)
def test_what_is_wrong_with_json_is_told(tmp_path, line, told):
    (tmp_path / "records.jsonl").write_text(line)
    assert [r.detail for r in read(tmp_path, "records")[1]] == [f"not a record: {told}"]
    (tmp_path / "train.json").write_text('[\n{"img_name": "a.png",\n "id": }]')
    assert [r.detail for r in read(tmp_path / "train.json", "slake")[1]] == ["not whole JSON: Expecting value at line 3, column 8"]


@pytest.mark.parametrize("levels, kept", [(50, 1), (100, 0), (600, 0), (100_000, 0)])
def test_json_nested_deeper_than_a_process_can_hand_on_is_kept_aside(tmp_path, levels, kept):
    layouts.save(0, tmp_path / "a.png")
    (tmp_path / "records.jsonl").write_text('{"image": "a.png", "modality": "CT", "license": "MIT", "caption": "CT of the chest.", "labels": ' + '{"a":' * levels + "1" + "}" * levels + "}")
    records, aside = read(tmp_path, "records")
    assert len(records) == kept and [r.reason for r in aside] == ["malformed-record"] * (1 - kept)
    pickle.dumps(records)


@pytest.mark.parametrize("side, told", [(20_000, "more than .* pixels"), (8_000, "8000x8000 px"), (64, "bytes exceed"), (None, "cannot be decoded")])
def test_a_huge_file_is_refused_before_it_is_read(tmp_path, side, told):
    """A slide of some gigabytes is a .tif like any other."""
    header = layouts.encoded(0, "TIFF") if side == 64 else b"no picture"
    if side in (8_000, 20_000):
        stream = io.BytesIO()
        Image.new("1", (side, side)).save(stream, "TIFF", compression="group4")
        header = stream.getvalue()
    (tmp_path / "a.tif").write_bytes(header)
    os.truncate(tmp_path / "a.tif", 2**30)
    (record,), _ = read(tmp_path / "a.tif", "image-folder")
    tracemalloc.start()
    with pytest.raises(Unreadable, match=told):
        record.images[0]()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**24


def test_a_picture_runs_no_program(tmp_path, monkeypatch):
    """Pillow has EPS drawn by Ghostscript, if there is one, whatever the file is called."""
    ran, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    (record,), _ = read(tmp_path / "a.png", "image-folder")
    with pytest.raises(Unreadable, match="UnidentifiedImageError"):
        record.images[0]()
    assert not ran.exists()


def _built(root, format):
    """A file of the format."""
    makers = {
        "unimedvl-jsonl": lambda: layouts.unimedvl(root),
        "slake": lambda: layouts.slake(root) / "train.json",
        "vqa-rad": lambda: layouts.vqa_rad(root),
        "path-vqa": lambda: layouts.image_questions(root / "path-vqa" / "train-0.parquet", tuple(range(30))),
        "unimed-5m": lambda: layouts.table([{"input_img": layouts.base64_text(n), "message": layouts.talk("a", str(n))} for n in range(30)], root / "a.parquet"),
        "omni-med-vqa": lambda: layouts.omni(root),
        "gmai-mmbench": lambda: layouts.gmai(root / "a.tsv"),
        "med-mnist": lambda: layouts.med_mnist(root / "bloodmnist.npz"),
        "records": lambda: layouts.jsonl([{"image": "a.png"}], root / "records.jsonl"),
    }
    return makers[format]()


TABLES = ["unimedvl-jsonl", "slake", "vqa-rad", "path-vqa", "unimed-5m", "omni-med-vqa", "gmai-mmbench", "med-mnist", "records"]


@pytest.mark.parametrize("share", [0, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("format", TABLES)
def test_a_file_that_breaks_off_gives_rejections_and_no_trace(tmp_path, format, share):
    file = _built(tmp_path, format)
    whole = len(read(file, format)[0])
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    for way in (format, "auto"):
        records, aside = read(file, way)
        assert len(records) <= whole and all(str(tmp_path) not in r.detail + r.where for r in aside)
        assert aside or share == 0 or format in ("gmai-mmbench", "unimedvl-jsonl", "records")
        assert len(aside) <= 4


@pytest.mark.parametrize("format", TABLES)
def test_damage_in_the_middle_gives_no_trace(tmp_path, format):
    file = _built(tmp_path, format)
    data = bytearray(file.read_bytes())
    for position in np.random.default_rng(0).integers(0, len(data), 40):
        data[position] ^= 0xFF
    file.write_bytes(bytes(data))
    records, aside = read(file, format)
    for record in records:
        for opener in record.images:
            try:
                opener()
            except Unreadable as error:
                assert error.reason
    assert records or aside


@pytest.mark.parametrize("rows", [[], {}, [[]], [None], [{}], [{"img_name": None, "q_lang": "en", "question": 1}], [{"image_path": [], "gt_answer": 1, "option_A": {}}]])
@pytest.mark.parametrize("format", ["slake", "vqa-rad", "omni-med-vqa"])
def test_odd_json_gives_rejections(tmp_path, format, rows):
    records, aside = read(layouts.dump(rows, tmp_path / "train.json"), format)
    assert len(records) + len(aside) <= 1


ODD_ROWS = [{}, [], None, 1, {"message": 3}, {"message": [3]}, {"input_img": 5, "message": []}, {"input_img": [{"height": 3}], "message": []}]


@pytest.mark.parametrize("row", [*ODD_ROWS, {"message": [{"from": "gpt", "value": None}]}])
def test_odd_rows_of_unimedvl_give_a_record_without_words_or_a_rejection(tmp_path, row):
    (item,) = sum(read(layouts.jsonl([row], tmp_path / "a.jsonl"), "unimedvl-jsonl"), [])
    assert getattr(item, "reason", None) == "malformed-record" or not item.turns


@pytest.mark.parametrize("value", [None, 1, 1.5, b"", b"no picture", datetime(2020, 1, 1), [1], [[]], {"path": ""}, {"bytes": b"", "path": None}, {"other": 1}, "Ünï"])
@pytest.mark.parametrize("column", ["input_img", "message", "modality", "dataset", "patient"])
def test_odd_cells_of_parquet_give_rejections(tmp_path, column, value):
    row = {"input_img": layouts.encoded(0), "message": '[{"from": "human", "value": "<image>a"}, {"from": "gpt", "value": "b"}]', "modality": "CT", "license": "CC0-1.0"}
    kept, reasons = take_in(layouts.table([row | {column: value}], tmp_path / "a.parquet"), "unimed-5m")
    assert len(kept) + len(reasons) == 1


@pytest.mark.parametrize("cell", [None, b"", b"no picture", "text"])
def test_odd_pictures_of_questions_give_rejections(tmp_path, cell):
    file = layouts.table([{"image": cell, "question": "What?", "answer": "A"}], tmp_path / "train-0.parquet")
    kept, reasons = take_in(file, "path-vqa", modality="CT", license="CC0-1.0")
    assert not kept and set(reasons.values()) <= {"malformed-record", "unreadable-image"} and len(reasons) == 1


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "bloodmnist.npz", train_images=np.array([{"a": 1}], dtype=object), train_labels=np.array([[1]]))
    assert [r.reason for r in read(tmp_path, "med-mnist")[1]] == ["unreadable-file"]


@pytest.mark.parametrize("shape", ["(1, 99999999, 99999999)", "(2000000000, 0)", "(1, 0, 28, 28)", "(-1, 28, 28)", "()", "(3, 28, 28)", "(3, (", "3 3", "(\x00)"])
def test_a_header_that_lies(tmp_path, shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    array = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"0" * 100
    with zipfile.ZipFile(tmp_path / "bloodmnist.npz", "w") as archive:
        archive.writestr("train_images.npy", array)
        archive.writestr("train_labels.npy", array)
    records, aside = read(tmp_path, "med-mnist")
    assert not records and aside[-1].reason == "unreadable-file"


@pytest.mark.parametrize("size", [(2,), (2, 64), (2, 64, 64), (2, 0, 64, 64), (2, 64, 64, 64, 3, 3)])
def test_volumes_of_other_dimensions_are_kept_aside(tmp_path, size):
    np.savez(tmp_path / "organmnist3d_64.npz", train_images=np.zeros(size, np.uint8), train_labels=np.zeros((2, 1), np.uint8))
    kept, reasons = take_in(tmp_path, "med-mnist")
    assert not kept and set(reasons.values()) <= {"altered-mirror", "unreadable-image", "unreadable-file"} and reasons


def test_pictures_larger_than_a_file_may_hold_are_refused_before_they_are_inflated(tmp_path):
    layouts.med_mnist(tmp_path / "bloodmnist.npz", size=64)
    records, aside = read(tmp_path, "med-mnist", max_pixels=64 * 64 - 1)
    assert not records and [r.reason for r in aside] == ["too-large"] * 3 and "64x64" in aside[0].detail


def test_few_large_pictures_are_examined_at_once(tmp_path):
    layouts.med_mnist(tmp_path / "bloodmnist.npz", counts=(7, 1, 1), size=2**10)
    records, _ = read(tmp_path, "med-mnist")
    assert [len(batch) for batch in intake.batches(records, 128)] == [4, 4, 1]


def test_a_damaged_schema_is_told(tmp_path):
    rows = [{"modality": "CT", "input_img": [layouts.base64_text(0)], "message": layouts.talk("What is it?", "A scan")}]
    whole, told = layouts.table(rows, tmp_path / "part-0.parquet").read_bytes(), 0
    begin = whole.index(b"ARROW:schema")
    for place in range(begin + 12, len(whole) - 8):
        (tmp_path / "x.parquet").write_bytes(whole[:place] + b"I" + whole[place + 1 :])
        try:
            parquet.columns(tmp_path / "x.parquet")
        except Unreadable:
            told += 1
    assert told > 10


def test_labels_that_are_no_class_and_counts_that_differ(tmp_path):
    np.savez(tmp_path / "retinamnist.npz", test_images=np.zeros((2, 28, 28, 3), np.uint8), test_labels=np.array([[9], [0]]))
    records, aside = read(tmp_path, "med-mnist")
    assert len(records) == 1 and [r.reason for r in aside] == ["altered-mirror", "malformed-record"]
    np.savez(tmp_path / "retinamnist.npz", test_images=np.zeros((2, 28, 28, 3), np.uint8), test_labels=np.array([[1]]))
    assert [r.detail for r in read(tmp_path, "med-mnist")[1]] == ["not as many labels as images"]


def test_an_array_that_does_not_stream_is_told(tmp_path):
    np.savez(tmp_path / "bloodmnist_64.npz", train_images=np.asfortranarray(np.zeros((2, 64, 64, 3), np.uint8)), train_labels=np.array([[1], [0]]))
    records, aside = read(tmp_path, "med-mnist")
    assert not records and [(r.reason, "ascontiguousarray" in r.detail) for r in aside] == [("unreadable-file", True)]


def test_every_task_of_unimedvl_reaches_the_corpus(tmp_path):
    file = layouts.unimedvl(tmp_path)
    file.write_text("".join(line for line in file.open() if "text-only" not in line))
    kept, reasons = take_in(file, "unimedvl-jsonl", license="CC-BY-4.0")
    assert [s.task for s in kept] == ["understanding", "generation", "interleaved", "understanding"] and kept[0].modality == "Histopathology"
    assert not reasons


def test_text_without_a_picture_reaches_the_corpus(tmp_path):
    file = layouts.jsonl([{"main_task_type": "text-only", "modality": "CT", "message": layouts.talk("What is IHC?", "A stain.")}], tmp_path / "a.jsonl")
    kept, _ = take_in(file, "unimedvl-jsonl", license="CC-BY-4.0")
    assert [s.task for s in kept] == ["text"]
