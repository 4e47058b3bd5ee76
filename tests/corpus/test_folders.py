"""What folders hold beside good data: odd names, links in circles, files and folders that may not be read; and what sources may be called."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import nibabel
import pytest

from corpus import shards, taken_in
from corpus.params import ShardParams
from corpus.patients import patient_key
from corpus.readers import formats
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from corpus.sample import Sample
from infra.store import corpus_store
from ray_jobs.ingest import BadSourceName, UnknownTerm, add_source, source_name
from tests.corpus import dicom_table, layouts
from tests.corpus.taking_in import take_in

SAID = {"modality": "CXR", "license": "CC0-1.0"}


def read(path, format="auto"):
    found = list(formats.read(Source(path, "here", **SAID), format))
    return [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, Rejection)]


@pytest.fixture
def public():
    """A folder that anybody may enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for inner in folder.iterdir():
        if not inner.is_symlink():
            inner.chmod(0o755)
    shutil.rmtree(folder)


@contextmanager
def as_anybody():
    """Without the rights of an administrator, whom no mode keeps out."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_names_that_are_no_utf8_are_written_out(tmp_path, s3):
    for name in (b"caf\xe9.png", b"\xe9t\xe9/x.png"):
        layouts.save(len(name), tmp_path / "odd" / os.fsdecode(name))
    (tmp_path / "odd" / os.fsdecode(b"caf\xe9.bin")).write_bytes(b"?")
    record = add_source(tmp_path / "odd", **SAID)
    assert record["records"] == {"seen": 3, "kept": 1, "quarantined": 2} and record["reasons"] == {"no-text": 1, "unknown-format": 1}
    aside = shards.read_quarantine(corpus_store().get(record["quarantine"]))
    assert {r.where for r in aside} == {r"caf\xe9.png", r"caf\xe9.bin"}
    sample, *_ = shards.unpack(corpus_store().get(record["shards"][0]["key"]))
    assert sample.labels["folder"] == r"\xe9t\xe9"
    assert patient_key(b"salt", "here", os.fsdecode(b"caf\xe9")) != patient_key(b"salt", "here", "cafe")


def test_a_link_to_itself_is_kept_aside(tmp_path):
    layouts.save(1, tmp_path / "heads" / "1.png")
    for name in ("loop.dat", "loop.png"):
        (tmp_path / name).symlink_to(name)
    records, aside = read(tmp_path)
    assert len(records) == 2 and [(r.where, r.reason) for r in aside] == [("loop.dat", "unknown-format")]
    with pytest.raises(Exception, match="no such file|not the name"):
        next(r for r in records if r.where == "loop.png").images[0]()


@pytest.fixture
def too_deep(tmp_path, monkeypatch):
    """A folder whose path no call to the system takes, beneath one that holds a picture."""
    layouts.save(1, tmp_path / "heads" / "1.png")
    monkeypatch.chdir(tmp_path)
    for _ in range(30):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    layouts.save(2, Path("2.png"))
    yield tmp_path
    os.chdir(tmp_path)
    shutil.rmtree("d" * 200)


@pytest.mark.parametrize("format", ["auto", "image-folder", "dicom", "nifti"])
def test_a_folder_too_deep_for_the_machine_is_told(too_deep, format):
    shutil.copy(dicom_table.files()["CT_small.dcm"], too_deep / "ct.dcm")
    shutil.copy(Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii", too_deep / "v.nii")
    records, aside = read(too_deep, format)
    assert records and [r.reason for r in aside if "longer than" in r.detail] == ["unreadable-file"]


@pytest.mark.parametrize("format", ["auto", "records", "unimedvl-jsonl", "dicom", "nifti"])
def test_a_pipe_is_not_waited_for(tmp_path, format):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(FileNotFoundError, match="no file and no folder"):
        read(tmp_path / "pipe.jsonl", format)


@pytest.mark.parametrize("format", ["auto", "records"])
def test_what_may_not_be_read_is_kept_aside(public, format):
    layouts.jsonl([{"image": "1.png", "caption": "A head."}], public / "open" / "records.jsonl")
    layouts.save(1, public / "open" / "1.png")
    for name in ("records.jsonl", "v.nii", "v.dcm"):
        (public / name).write_bytes(b"?")
        (public / name).chmod(0)
    layouts.save(2, public / "closed" / "2.png")
    (public / "closed").chmod(0)
    # Once as ourselves: Python loads much when it is first needed, from folders that not everybody may read.
    (public / "open" / "strange.xyz").write_bytes(b"?")
    read(public / "open", format)
    (public / "open" / "strange.xyz").unlink()
    with as_anybody():
        records, aside = read(public, format)
    assert len(records) == 1
    # Where any format is read, a scan's name is not told.
    scans = ["v.dcm", "v.nii"] if format == "records" else ["file 2 of 4 that may not be read", "file 3 of 4 that may not be read"]
    told = [("closed", "unreadable-folder"), *((name, "unreadable-file") for name in ("records.jsonl", *scans))]
    assert sorted((r.where, r.reason) for r in aside) == sorted(told)


@pytest.mark.parametrize("format", ["dicom", "nifti"])
def test_closed_files_and_links_out_are_kept_aside_without_their_names(public, tmp_path, format):
    (tmp_path / "outside.dcm").write_bytes(b"?")
    (public / "a.dcm").symlink_to(tmp_path / "outside.dcm")
    (public / "broken.dcm").symlink_to("nowhere")
    (public / "jane doe.dcm").write_bytes(b"?")
    (public / "jane doe.dcm").chmod(0)
    read(public / "a.dcm", format)
    with as_anybody():
        records, aside = read(public, format)
    assert not records and {r.reason for r in aside} == {"path-outside-folder", "unreadable-file"}
    assert sorted(r.where for r in aside) == ["file 1 of 2", "file 2 of 2"]


@pytest.mark.parametrize("format, name", [("dicom", "CT_small.dcm"), ("nifti", "anatomical.nii")])
def test_a_scan_that_vanishes_while_others_are_read_is_told(tmp_path, format, name):
    shipped = dicom_table.files()[name] if format == "dicom" else Path(nibabel.__file__).parent / "tests" / "data" / name
    for number in range(3):
        shutil.copy(shipped, tmp_path / f"{number}-{name}")
    found = formats.read(Source(tmp_path, "s", license="MIT", modality="CT"), format)
    first = next(found)
    (tmp_path / f"1-{name}").unlink()
    found = list(found)
    records, aside = [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, Rejection)]
    assert isinstance(first, Record) and records and [(r.reason, r.where) for r in aside] == [("unreadable-file", "file 2 of 3")]


def test_a_source_elsewhere_is_not_replaced_unasked(tmp_path, s3):
    for place in ("x", "y"):
        layouts.save(ord(place) - ord("x"), tmp_path / place / "train" / "head" / "1.png")
    assert add_source(tmp_path / "x" / "train", **SAID)["how"] == "added"
    with pytest.raises(taken_in.SourceElsewhere, match="--name.*--replace"):
        add_source(tmp_path / "y" / "train", **SAID)
    assert add_source(tmp_path / "x" / "train", **SAID)["how"] == "up to date"
    assert add_source(tmp_path / "y" / "train", replace=True, **SAID)["how"] == "replaced"
    assert add_source(tmp_path / "y" / "train", **SAID)["how"] == "up to date"


@pytest.mark.parametrize("option, word", [("split", "trian"), ("modality", "CTT"), ("license", "CC-BY-5.0"), ("split", ""), ("modality", ""), ("license", "")])
def test_a_slip_in_what_is_said_of_a_source_costs_none_of_its_records(tmp_path, s3, option, word):
    folder = tmp_path / f"{option}-{len(word)}"
    layouts.save(0, folder / "head" / "1.png")
    assert add_source(folder, **SAID)["records"]["kept"] == 1
    with pytest.raises(UnknownTerm, match=f"--{option} '{word}' is none of"):
        add_source(folder, **SAID | {option: word})
    assert add_source(folder, **SAID)["how"] == "up to date"


def test_names_of_sources(tmp_path):
    (tmp_path / "Own Photos (2)").mkdir()
    assert source_name(None, tmp_path / "Own Photos (2)") == "own-photos-2"
    assert source_name(None, Path("/")) == "source"
    assert source_name("Ward 7", tmp_path) == "ward-7"
    for bad in ("team/ok", "../../x", ".", "-x", "", "x" * 200, "unimed-mini"):
        with pytest.raises(BadSourceName):
            source_name(bad, tmp_path)


def test_a_record_may_name_any_source(tmp_path):
    sample = Sample("a#t", "text", "CT", "../../Else where", "CC0-1.0", "", "train", "p", parts=())
    shard = shards.make(sample.source, [(sample, 0)], ShardParams())
    assert shard.name.startswith("Else where/") and next(shards.unpack(shard.data)).source == "../../Else where"


@pytest.mark.parametrize("name", ["unimed-mini", "Package-Images"])
def test_a_record_may_not_name_a_built_in_source(tmp_path, name):
    layouts.save(0, tmp_path / "a.png")
    line = {"image": "a.png", "caption": "A slide.", "modality": "CT", "license": "MIT"}
    layouts.jsonl([line | {"source": name}, line], tmp_path / "records.jsonl")
    taken = take_in(formats, Source(tmp_path, "s"))
    assert [s.source for s in taken.samples] == ["s"] and [(r.where, r.reason, "built-in" in r.detail) for r in taken.aside] == [("records.jsonl:1", "malformed-record", True)]
