"""Which reader reads what: mixed folders, unknown files, and the command line."""

import gzip
import json
import re
import subprocess
import sys
import time
from collections import Counter
from unicodedata import normalize

import numpy as np
import pytest

from corpus.readers import FORMATS, formats
from corpus.readers.parquet import MissingColumn
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable
from corpus.sample import Turn
from flows import console
from ray_jobs.ingest import add_source
from tests.conftest import REPO
from tests.corpus import layouts
from tests.corpus.dicom_making import dataset, save
from tests.corpus.taking_in import take_in


@pytest.fixture
def mixed(tmp_path):
    """One of everything, with files that are no data and files nobody knows."""
    root = tmp_path / "mixed"
    layouts.unimedvl(root / "unimedvl")
    layouts.slake(root / "Slake1.0")
    layouts.vqa_rad(root / "osfstorage")
    layouts.image_questions(root / "path-vqa" / "data" / "test-00000-of-00001.parquet")
    layouts.table([{"input_img": layouts.base64_text(20), "message": layouts.talk("What?", "A head")}], root / "5m" / "part2.parquet")
    layouts.omni(root / "OmniMedVQA")
    layouts.gmai(root / "gmai" / "VAL.tsv")
    layouts.med_mnist(root / "medmnist" / "bloodmnist_64.npz", (1, 1, 1))
    layouts.image_folder(root / "own photos")
    layouts.save(21, root / "plain" / "pictures" / "x.png")
    layouts.jsonl([{"image": "pictures/x.png", "caption": "A head."}], root / "plain" / "records.jsonl")
    for name in ("README.md", "LICENSE", "SHA256SUMS", ".DS_Store", "notes.txt", "plain/pictures/about.json"):
        (root / name).write_text("{}")
    for name in ("strange.xyz", "numbers.npz", "table.tsv", "half.parquet", "other.json", "other.jsonl", "empty.jsonl"):
        (root / name).write_bytes(b"" if name == "empty.jsonl" else b'{"a": 1}')
    return root


def read(path, format="auto", **said):
    found = list(formats.read(Source(path, "here", **said), format))
    return [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, Rejection)]


def test_auto_reads_each_file_of_a_mixed_folder_once(mixed):
    records, aside = read(mixed)
    counts = Counter(record.where.split("/")[0] for record in records)
    assert counts == {"unimedvl": 5, "Slake1.0": 4, "osfstorage": 3, "path-vqa": 2, "5m": 1, "OmniMedVQA": 2, "gmai": 3, "medmnist": 3, "own photos": 4, "plain": 1}
    assert len({record.id for record in records}) == len(records)
    unknown = sorted(r.where for r in aside if r.reason == "unknown-format")
    assert unknown == ["empty.jsonl", "half.parquet", "numbers.npz", "other.json", "other.jsonl", "strange.xyz", "table.tsv"]
    assert Counter(r.reason for r in aside) == {"unknown-format": 7, "altered-mirror": 3, "augmented-copy": 1}
    for record in records:
        assert all(opener().size for opener in record.images)


@pytest.mark.parametrize("folder, kept", [("dicom", True), ("CT", True), ("test", True), ("brain-scans_2", True), ("Head", True), ("sub-01", True), ("Smith_John", False), ("Mr Smith", False)])
def test_a_class_of_pictures_beside_scans_is_one_where_folders_are_not_of_patients(tmp_path, folder, kept):
    (tmp_path / folder).mkdir()
    save(dataset(np.zeros((64, 64), np.uint8)), tmp_path / folder / "a.dcm")
    layouts.save(1, tmp_path / "pneumonia" / "1.png")
    (tmp_path / "pneumonia" / "1.xml").write_bytes(b"?")
    records, aside = read(tmp_path)
    assert [r.where for r in records if "folder" in r.labels] == (["pneumonia/1.png"] if kept else [])
    assert {r.reason: "pneumonia" in r.where for r in aside} == {"unknown-format": True} if kept else {"unknown-format": False, "unnamed-picture": False}


@pytest.mark.parametrize("name, told", [("LICENSE", False), ("Readme", False), ("LICENSE-MIT", False), ("citation.pdf", False), ("Thumbs.db", False), ("manifest.csv", True), ("citation.xlsx", True), ("notice.zip", True), ("MANIFEST", True)])
def test_what_goes_with_data_and_is_none(tmp_path, name, told):
    layouts.save(1, tmp_path / "1.png")
    (tmp_path / name).write_bytes(b"?")
    assert [(r.where, r.reason) for r in read(tmp_path)[1]] == ([(name, "unknown-format")] if told else [])


def test_auto_finds_the_format_of_a_single_file(mixed):
    assert len(read(mixed / "gmai" / "VAL.tsv")[0]) == 3
    assert len(read(mixed / "own photos" / "d.png")[0]) == 1
    assert [r.reason for r in read(mixed / "strange.xyz")[1]] == ["unknown-format"]
    assert [r.reason for r in read(mixed / "LICENSE")[1]] == ["unknown-format"]


def test_the_cache_of_hugging_face_is_known_by_its_folders(tmp_path):
    snapshot = tmp_path / "datasets--someone--vqa-rad" / "snapshots" / "bcf91e7654fb9d51c8ab6a5b82cacf3fafd2fae9"
    blob = layouts.image_questions(tmp_path / "datasets--someone--vqa-rad" / "blobs" / "0123")
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "test-00000-of-00001.parquet").symlink_to(blob)
    assert formats.detect(snapshot / "data" / "test-00000-of-00001.parquet", {}) == "vqa-rad"
    assert {r.split for r in read(tmp_path / "datasets--someone--vqa-rad")[0]} == {"test"}


@pytest.mark.parametrize(
    "place, format",
    {
        "VQA_RAD/train.parquet": "vqa-rad", "data/vqarad-test.parquet": "vqa-rad", "PathVQA/data/train.parquet": "path-vqa", "vqa/radiology/test.parquet": None, "vqa-radiology/test.parquet": None,
        "vqa-rad and path-vqa/path-vqa/train.parquet": "path-vqa", "path-vqa/vqa-rad/train.parquet": "vqa-rad", "vqa-rad+path-vqa/train.parquet": None,
    }.items(),
)
def test_what_is_nearest_a_file_names_its_set(tmp_path, place, format):
    assert formats.detect(layouts.image_questions(tmp_path / place), {}) == format


@pytest.mark.parametrize("name", ["VAL.tsv", "a.dcm"])
def test_a_link_from_folder_to_folder_is_followed(tmp_path, name):
    (tmp_path / "data").mkdir()
    layouts.gmai(tmp_path / "VAL.tsv") if name == "VAL.tsv" else save(dataset(np.zeros((64, 64), np.uint8)), tmp_path / name)
    (tmp_path / "data" / name).symlink_to(tmp_path / name)
    records, aside = read(tmp_path)
    assert not aside and len(records) == (6 if name == "VAL.tsv" else 2)


def test_columns_say_what_a_parquet_table_is(tmp_path):
    layouts.table([{"picture": layouts.encoded(0), "words": "A slide."}], tmp_path / "own.parquet")
    records, aside = read(tmp_path, columns={"input_img": "picture", "caption": "words"})
    assert not aside and records[0].caption == "A slide."


def test_columns_of_a_folder_without_a_parquet_table_are_an_error(tmp_path):
    layouts.image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no Parquet table"):
        read(tmp_path, columns={"input_img": "picture"})


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    outside = layouts.gmai(tmp_path / "outside" / "VAL.tsv")
    root = tmp_path / "source"
    root.mkdir()
    (root / "VAL.tsv").symlink_to(outside)
    (root / "folder").symlink_to(outside.parent)
    (root / "broken.tsv").symlink_to(root / "absent.tsv")
    assert sorted((r.where, r.reason) for r in read(root)[1]) == [("VAL.tsv", "path-outside-folder"), ("broken.tsv", "unknown-format")]
    with pytest.raises(FileNotFoundError, match="GMAI"):
        read(root, "gmai-mmbench")


def test_a_name_that_leads_elsewhere_claims_no_folder(tmp_path):
    layouts.jsonl([{"image": "../photos/1.png"}], tmp_path / "a" / "records.jsonl")
    layouts.save(1, tmp_path / "photos" / "1.png")
    assert [r.where for r in read(tmp_path)[0]] == ["a/records.jsonl:1 1.png", "photos/1.png"]


def test_errors_of_readers_are_told_in_a_line():
    assert all(console._is_known(error("told")) for error in (formats.UnknownFormat, MissingColumn, FileNotFoundError))


def test_what_cannot_be_read_at_all_is_an_error_in_a_line(tmp_path):
    with pytest.raises(formats.UnknownFormat, match="slake"):
        read(tmp_path, "slaked")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no data"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing")
    for format, wanted in (("slake", "SLAKE"), ("dicom", "no DICOM file"), ("nifti", "no NIfTI volume")):
        with pytest.raises(FileNotFoundError, match=wanted):
            read(tmp_path, format)


def test_what_is_said_of_a_source_reaches_its_samples(tmp_path, s3):
    layouts.image_folder(tmp_path / "Own Photos")
    layouts.table([{"picture": layouts.encoded(30), "words": "A slide of the colon."}], tmp_path / "Own Photos" / "more.parquet")
    said = {"modality": "CXR", "license": "CC0-1.0", "split": "val", "columns": {"input_img": "picture", "caption": "words"}}
    record = add_source(tmp_path / "Own Photos", **said)
    # The picture without a folder has no words; the augmented copy is told by its name.
    assert record["name"] == "own-photos" and record["records"] == {"seen": 6, "kept": 4, "quarantined": 2}
    assert record["reasons"] == {"augmented-copy": 1, "no-text": 1}
    assert add_source(tmp_path / "Own Photos", **said)["how"] == "up to date"


def test_the_reader_in_the_docs_reads(tmp_path, monkeypatch):
    written = re.search(r"```python\n(.*?)```", (REPO / "docs" / "data.md").read_text(), re.DOTALL)[1]
    (tmp_path / "vqa_med.py").write_text(written)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(FORMATS, "vqa-med", "vqa_med")
    layouts.save(0, tmp_path / "set" / "images" / "synpic1.jpg")
    (tmp_path / "set" / "test.txt").write_text("synpic1|modality|what is shown?|ihc slide#slide\nnot a question\n")
    (record,), (aside,) = read(tmp_path / "set")
    assert record.turns == (Turn("what is shown?", "ihc slide", "OPEN"),) and record.images[0]().size == (96, 96) and record.split == "test"
    assert (aside.where, aside.reason) == ("test.txt:2", "malformed-record") and len(written.splitlines()) <= 35


def test_the_docs_name_every_format():
    told = (REPO / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in told for name in FORMATS)


@pytest.mark.parametrize("arguments, told", [(["--format", "slaked"], "no format"), (["--columns", "x"], "our=theirs"), (["--format", "path-vqa", "--columns", "image=picture"], "unimed-5m"), (["--image-root", "/absent"], "does not exist"), (["--image-root", __file__], "is no folder")])
def test_the_command_line_tells_what_is_wrong(tmp_path, arguments, told):
    done = subprocess.run([sys.executable, "-m", "flows.cli", "data", "add", str(tmp_path), *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["add", ""], ["add", ".", "--image-root", ""], ["review", "--pictures", ""]])
def test_an_empty_path_is_not_the_current_folder(arguments):
    done = subprocess.run([sys.executable, "-m", "flows.cli", "data", *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "a path is not empty" in done.stderr


def test_help_lists_the_formats():
    told = subprocess.run([sys.executable, "-m", "flows.cli", "data", "add", "--help"], capture_output=True, text=True, env={"COLUMNS": "200"}).stdout
    assert all(name in told for name in ("gmai-mmbench", "dicom", "image-folder", "--columns", "--image-root", "--license"))


def test_pictures_of_records_may_lie_elsewhere(tmp_path):
    layouts.save(0, tmp_path / "pictures" / "a" / "1.png")
    layouts.jsonl([{"image": "a/1.png", "caption": "A slide."}, {"image": "../said/records.jsonl", "caption": "A slide."}], tmp_path / "said" / "records.jsonl")
    taken = take_in(formats, Source(tmp_path / "said", "s", license="MIT", modality="CT", image_root=tmp_path / "pictures"))
    assert [sample.id for sample in taken.samples] == ["s/a/1.png#g"] and taken.reasons == ["path-outside-folder"]


def test_capitals_in_suffixes_and_backslashes_in_paths(tmp_path):
    layouts.unimedvl(tmp_path / "a").rename(tmp_path / "a" / "TRAIN.JSONL")
    text = (tmp_path / "a" / "TRAIN.JSONL").read_text()
    (tmp_path / "a" / "TRAIN.JSONL").write_text(text.replace("/images/", r"images\\"))
    layouts.omni(tmp_path / "b").rename(tmp_path / "b" / "QA_information" / "DEMO.JSON")
    layouts.image_questions(tmp_path / "path-vqa" / "test-0.PARQUET", (7,))
    layouts.med_mnist(tmp_path / "bloodmnist_64.npz", (1, 1, 1)).rename(tmp_path / "BLOODMNIST_64.NPZ")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "RECORDS.JSONL.GZ").write_bytes(gzip.compress(b'{"image": "x.png"}'))
    layouts.save(22, tmp_path / "c" / "x.png")
    records, aside = read(tmp_path)
    assert Counter(re.split("[/:]", record.where)[0] for record in records) == {"a": 5, "b": 2, "path-vqa": 1, "BLOODMNIST_64.NPZ": 3, "c": 1}
    assert all(opener().size for record in records for opener in record.images) and {r.reason for r in aside} == {"altered-mirror"}


@pytest.mark.parametrize("written, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_letters_of_their_own(tmp_path, written, stored):
    """As macOS stores names."""
    layouts.save(1, tmp_path / normalize(stored, "Ödem") / normalize(stored, "é.png"))
    layouts.jsonl([{"image": normalize(written, "Ödem/é.png"), "caption": "A slide.", "split": "test"}], tmp_path / "records.jsonl")
    records, aside = read(tmp_path)
    assert not aside and [r.split for r in records] == ["test"] and records[0].images[0]().size


@pytest.mark.parametrize("name", ["imgs.zip", "2.PNG.gz", "rows.parquet.gz", "imgs.tar.zst", "a.csv.bz2"])
def test_what_is_packed_is_to_be_unpacked(tmp_path, name):
    layouts.save(1, tmp_path / "1.png")
    (tmp_path / name).write_bytes(b"PK")
    assert [(r.where, r.detail) for r in read(tmp_path)[1]] == [(name, "packed: unpack it first")]


@pytest.mark.parametrize("name, told", [("Jane Doe.dcm.gz", "packed"), ("Jane Doe.dcm.xz", "packed"), ("Jane Doe.nii.7z", "packed"), ("Jane Doe.hdr", "save it as NIfTI"), ("Jane Doe.img.gz", "save it as NIfTI"), ("Jane Doe.nrrd", "save it as NIfTI")])
def test_a_scan_that_is_not_read_is_told_with_its_mend_and_without_its_name(tmp_path, name, told):
    (tmp_path / name).write_bytes(b"?")
    ((where, detail),) = [(r.where, r.detail) for r in read(tmp_path)[1]]
    assert told in detail and where.startswith("sha256:")


@pytest.mark.parametrize("format, file", [("slake", "train.json"), ("vqa-rad", "VQA_RAD Dataset Public.json"), ("omni-med-vqa", "QA_information/Open-access/Demo.json")])
@pytest.mark.parametrize("named", [False, True])
def test_gzipped_json_is_read(tmp_path, format, file, named):
    {"slake": layouts.slake, "vqa-rad": layouts.vqa_rad, "omni-med-vqa": layouts.omni}[format](tmp_path)
    expected = read(tmp_path, format)[0]
    (tmp_path / f"{file}.gz").write_bytes(gzip.compress((tmp_path / file).read_bytes()))
    (tmp_path / file).unlink()
    records, aside = read(tmp_path, format if named else "auto")
    assert [(r.turns, r.split) for r in records] == [(r.turns, r.split) for r in expected] and (named or not aside)


def test_a_backslash_does_not_lead_out_of_the_folder(tmp_path):
    layouts.save(0, tmp_path / "secret.png")
    layouts.jsonl([{"image": r"..\secret.png"}], tmp_path / "a" / "records.jsonl")
    with pytest.raises(Unreadable) as error:
        read(tmp_path / "a")[0][0].images[0]()
    assert error.value.reason == "path-outside-folder"


def _without(row, key):
    return {name: said for name, said in row.items() if name != key}


ROWS = {
    "slake": ("train.json", layouts.slake_row(1, "What?", "A"), "q_lang"),
    "vqa-rad": ("rad.json", layouts.vqa_rad_row(1, "What?", "A"), "phrase_type"),
    "omni-med-vqa": ("Demo.json", layouts.omni_row("a.png", "What?", ["A", "B"], "A"), "gt_answer"),
    "unimedvl-jsonl": ("train.jsonl", {"input_img": [], "main_task_type": "text", "message": layouts.talk("What?", "A")}, "message"),
}


@pytest.mark.parametrize("first", ["null", "lacks a field", "is broken", "is long"])
@pytest.mark.parametrize("format", ROWS)
def test_a_file_is_known_by_more_than_its_first_row(tmp_path, format, first):
    name, row, key = ROWS[format]
    long = row | {"aa": "x " * 40_000}
    lines = [{"null": "null", "lacks a field": json.dumps(_without(row, key)), "is broken": '{"broken', "is long": json.dumps(dict(sorted(long.items())))}[first], json.dumps(row)]
    (tmp_path / name).write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    assert formats.detect(tmp_path / name, {}) == format
    assert len(sum(read(tmp_path, format), [])) >= 1


def _cut(file, share=0.6):
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    return file


def test_pictures_of_a_damaged_file_are_no_image_folder(tmp_path):
    layouts.slake(tmp_path / "slake")
    _cut(tmp_path / "slake" / "train.json")
    _cut(layouts.omni(tmp_path / "omni"))
    layouts.save(23, tmp_path / "mine" / "test" / "x.png")
    (tmp_path / "mine" / "records.jsonl").write_text('{"image": "test/x.png", "split": "test"\n')
    layouts.image_folder(tmp_path / "others")
    records, aside = read(tmp_path)
    assert Counter(r.where.split("/")[0] for r in records) == {"slake": 1, "others": 4}
    unnamed = {r.where for r in aside if r.reason == "unnamed-picture"}
    assert len(unnamed) == 7 and {"slake/imgs/xmlab1/mask.png", "omni/Images/Demo/a b.png", "mine/test/x.png"} <= unnamed


def test_pictures_beside_a_parquet_table_that_lost_its_end_are_no_image_folder(tmp_path):
    """It cannot be recognised by anything then."""
    rows = [{"input_img": "test/x.png", "message": layouts.talk("What?", "A slide"), "split": "test"}]
    layouts.save(1, tmp_path / "mine" / "test" / "x.png")
    file = layouts.table(rows, tmp_path / "mine" / "rows.parquet")
    layouts.image_folder(tmp_path / "others")
    assert len(read(tmp_path)[0]) == 5
    _cut(file)
    records, aside = read(tmp_path)
    assert {r.where.split("/")[0] for r in records} == {"others"}
    assert {(r.where, r.reason) for r in aside if r.where.startswith("mine")} == {("mine/rows.parquet", "unknown-format"), ("mine/test/x.png", "unnamed-picture")}


def test_pictures_that_lie_elsewhere_than_their_file_says_are_no_image_folder(tmp_path):
    """They would be taken in as pictures to train on, called after their folder."""
    layouts.vqa_rad(tmp_path / "rad")
    (tmp_path / "rad" / "VQA_RAD Image Folder").rename(tmp_path / "rad" / "Pictures of VQA-RAD")
    layouts.slake(tmp_path / "slake")
    (tmp_path / "slake" / "imgs").rename(tmp_path / "slake" / "pictures")
    layouts.image_folder(tmp_path / "others")
    records, aside = read(tmp_path)
    assert {r.where.split("/")[0] for r in records if not r.where.count(":")} == {"others"}
    assert Counter(r.where.split("/")[0] for r in aside if r.reason == "unnamed-picture") == {"rad": 2, "slake": 6}


def test_many_damaged_files_beside_many_pictures_take_no_longer_each(tmp_path):
    def seconds() -> float:
        begun = time.process_time()
        assert len(list(formats.read(Source(tmp_path, "s", license="MIT", modality="CT")))) >= 4000
        return time.process_time() - begun

    for number in range(200):
        (tmp_path / f"{number}").mkdir()
        for name in range(20):
            (tmp_path / f"{number}" / f"{name}.png").touch()
    alone = seconds()
    for number in range(200):
        layouts.jsonl([{"message": 1, "input_img": 2}], tmp_path / f"{number}" / "a.jsonl")
    assert seconds() < 5 * alone


def test_a_bad_row_of_a_file_that_holds_its_pictures_spoils_no_folder(tmp_path):
    layouts.gmai(tmp_path / "VAL.tsv", [layouts.gmai_row(0, 1, "E"), layouts.gmai_row(1, 2)])
    layouts.table([{"input_img": layouts.base64_text(n), "message": said} for n, said in ((20, layouts.talk("What?", "A head")), (21, []))], tmp_path / "a.parquet")
    (tmp_path / "bloodmnist.npz").write_bytes(b"PK")
    layouts.image_folder(tmp_path / "others")
    assert Counter(r.where.split("/")[0] for r in read(tmp_path)[0])["others"] == 4


@pytest.mark.parametrize("format", ["auto", "image-folder"])
def test_a_link_within_the_source_is_followed(tmp_path, format):
    layouts.save(1, tmp_path / "s" / "a" / "1.png")
    layouts.save(2, tmp_path / "out.png")
    (tmp_path / "s" / "b").mkdir()
    (tmp_path / "s" / "b" / "2.png").symlink_to("../a/1.png")
    (tmp_path / "s" / "b" / "3.png").symlink_to("../../out.png")
    opened = {}
    for record in read(tmp_path / "s", format)[0]:
        try:
            opened[record.where] = record.images[0]().size
        except Unreadable as error:
            opened[record.where] = error.reason
    assert opened == {"a/1.png": (96, 96), "b/2.png": (96, 96), "b/3.png": "path-outside-folder"}
