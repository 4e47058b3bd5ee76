"""Each reader over files in its published layout."""

import csv
import gzip
import json

import numpy as np
import pytest

from corpus import vocabulary
from corpus.readers import FORMATS, formats
from corpus.readers.parquet import MissingColumn
from corpus.readers.source import Source
from corpus.record import Record, Rejection, Unreadable
from corpus.sample import Turn
from tests.corpus import layouts


def read(path, format, **said):
    """(records, rejections) of a source."""
    found = list(formats.read(Source(path, "here", **said), format))
    return [i for i in found if isinstance(i, Record)], [i for i in found if isinstance(i, Rejection)]


def same(opener, number):
    return np.array_equal(np.asarray(opener().convert("RGB")), np.asarray(layouts.pictures()[number].convert("RGB")))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_reader(name):
    module = formats.reader(name)
    assert callable(module.recognises) and callable(module.read)


def test_unimedvl_jsonl(tmp_path):
    records, aside = read(layouts.unimedvl(tmp_path), "unimedvl-jsonl")
    asked, drawn, edited, text, several = records
    assert not aside and {r.modality for r in records} == {"HIS"}
    assert asked.turns == (Turn("What stain is this?", "IHC", "OPEN"), Turn("Is it colon?", "Yes", "CLOSED")) and same(asked.images[0], 0)
    assert drawn.caption == "Draw an IHC slide of the colon." and same(drawn.images[0], 1) and drawn.labels["response"] == "<think>Colon.</think>\nHere it is:\n- glands"
    assert edited.instruction == "Stain this slide." and same(edited.images[0], 2) and same(edited.target, 3) and not edited.turns
    assert text.images == () and text.turns == (Turn("What is IHC?", "Immunohistochemistry.", "OPEN"),)
    assert len(several.images) == 2 and [t.answer for t in several.turns] == ["The first.", "Yes"]
    assert asked.patient == several.patient and asked.labels["dataset"] == "quilt"


def test_neighbouring_pictures_of_one_patient_are_not_one_record(tmp_path):
    rows = [{"input_img": [layouts.base64_text(n)], "message": layouts.talk(f"Which is it, {n}?", str(n)), "modality": "HIS", "patient": "7"} for n in (0, 1, 1)]
    (first, second), _ = read(layouts.table(rows, tmp_path / "part.parquet"), "unimed-5m")
    assert same(first.images[0], 0) and [t.answer for t in first.turns] == ["0"]
    assert same(second.images[0], 1) and [t.answer for t in second.turns] == ["1", "1"] and first.patient == second.patient == "7"


def test_unimedvl_jsonl_gzipped_beside_other_pictures(tmp_path):
    plain = layouts.unimedvl(tmp_path / "owner")
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    records, _ = read(packed, "unimedvl-jsonl", image_root=tmp_path / "owner")
    assert same(records[0].images[0], 0)


def test_unimedvl_may_say_in_a_caption_what_is_drawn(tmp_path):
    drawn, edit = {"output_img": ["a.png"], "caption": "A slide."}, {"input_img": ["a.png"], "output_img": ["b.png"], "caption": "Stain it."}
    spoken = drawn | {"message": layouts.talk("Draw a slide.", "Here.")}
    first, second, third = read(layouts.jsonl([drawn | {"message": []}, edit | {"message": []}, spoken], tmp_path / "a.jsonl"), "unimedvl-jsonl")[0]
    assert (first.caption, third.caption) == ("A slide.", "Draw a slide.")
    assert second.instruction == "Stain it." and second.target and not second.caption


@pytest.mark.parametrize("task, drawn", [("report_generation", False), ("text_generation", False), ("generation", True), ("image_generation", False)])
def test_an_input_that_another_task_than_generation_asks_about_is_not_to_be_drawn(tmp_path, task, drawn):
    row = {"main_task_type": task, "input_img": [{"path": "0.png"}], "message": layouts.talk("<image>Write a report.", "A slide of the colon.")}
    (record,), aside = read(layouts.jsonl([row], tmp_path / "rows.jsonl"), "unimedvl-jsonl")
    assert not aside and record.caption == ("Write a report." if drawn else None)
    assert record.turns == (() if drawn else (Turn("Write a report.", "A slide of the colon.", "OPEN"),))


@pytest.mark.parametrize("name", ["train.json", "train.json.gz", "train.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_unimedvl_rows_may_be_an_array(tmp_path, name, indent):
    expected = [(r.turns, r.caption, r.instruction, r.split, r.images) for r in read(layouts.unimedvl(tmp_path), "auto")[0]]
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").unlink()
    text = json.dumps([*rows, "no row"], indent=indent).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (tmp_path / "images" / "boxes.json").write_text("[]")
    for format in ("auto", "unimedvl-jsonl"):
        records, aside = read(tmp_path, format)
        assert [(r.turns, r.caption, r.instruction, r.split, r.images) for r in records] == expected
        assert [(r.where, r.reason) for r in aside] == [(f"{name}:{len(rows)}", "malformed-record")]


def test_what_is_said_may_be_written_as_chats_are(tmp_path):
    said = [{"role": "system", "content": "You are a radiologist."}, {"role": "user", "content": "<image>\nWhich organ?"}, {"role": "assistant", "content": "The liver"}]
    rows = [{"input_img": [{"path": "0.png"}], "message": message} for message in (said, [{"from": "human"}], [{"role": "user"}])]
    (record,), aside = read(layouts.jsonl(rows, tmp_path / "rows.jsonl"), "unimedvl-jsonl")
    assert record.turns == (Turn("Which organ?", "The liver", "OPEN"),) and [r.detail for r in aside] == ["not a record: no field 'value'"] * 2


@pytest.mark.parametrize("human, model", [("Human", "GPT"), ("user", "assistant")])
def test_those_who_speak_may_be_called_otherwise(tmp_path, human, model):
    said = [{"from": "system", "value": "You are a radiologist."}, {"from": human, "value": "<image>\nWhich organ?"}, {"from": model, "value": "The liver"}]
    (record,), _ = read(layouts.jsonl([{"input_img": [{"path": "a.png"}], "message": said}], tmp_path / "rows.jsonl"), "unimedvl-jsonl")
    assert [(t.question, t.answer) for t in record.turns] == [("Which organ?", "The liver")]


@pytest.mark.parametrize("inputs", [[], [{"path": "0.png"}]])
def test_further_turns_of_a_picture_to_draw_are_counted(tmp_path, inputs):
    row = {"input_img": inputs, "output_img": [{"path": "1.png"}], "message": layouts.talk("Draw a slide.", "Here.", "Is it stained?", "Yes.")}
    (record,), aside = read(layouts.jsonl([row], tmp_path / "rows.jsonl"), "unimedvl-jsonl")
    assert not aside and (record.caption or record.instruction) == "Draw a slide." and record.left_out == 1


def test_further_pictures_to_draw_are_counted(tmp_path):
    two = [{"path": "0.png"}, {"path": "1.png"}]
    rows = [{"input_img": inputs, "output_img": two, "message": layouts.talk("Draw.", "Here.")} for inputs in (two[:1], two, [])]
    records, aside = read(layouts.jsonl(rows, tmp_path / "rows.jsonl"), "unimedvl-jsonl")
    assert not aside and [r.labels["pictures_left_out"] for r in records] == [1, 2, 1]


def test_unimed_5m_base64(tmp_path):
    rows = [
        {"input_img": [layouts.base64_text(0)], "output_img": None, "message": layouts.talk("<image>What?", "IHC"), "modality": "HIS"},
        {"input_img": None, "output_img": [layouts.base64_text(1)], "message": layouts.talk("Draw.", "Drawn."), "modality": "HIS"},
    ]
    (asked, drawn), aside = read(layouts.table(rows, tmp_path / "part2" / "eval.parquet"), "unimed-5m", license="CC-BY-4.0", split="test")
    assert not aside and same(asked.images[0], 0) and asked.license == "CC-BY-4.0" and asked.split == "test"
    assert drawn.caption == "Draw." and same(drawn.images[0], 1)


def test_unimed_5m_metadata_with_the_owners_pictures(tmp_path):
    layouts.save(3, tmp_path / "owner" / "ixi" / "3.png")
    row = {"input_img": [{"path": "/ixi/3.png"}], "message": '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A head"}]'}
    part = layouts.table([row], tmp_path / "part1" / "meta.parquet")
    (record,), _ = read(part, "unimed-5m", image_root=tmp_path / "owner")
    assert same(record.images[0], 3) and record.turns[0].answer == "A head"
    (lost,), _ = read(part, "unimed-5m")
    with pytest.raises(Unreadable) as error:
        lost.images[0]()
    assert error.value.reason == "missing-image"


def test_any_parquet_table_by_its_columns(tmp_path):
    rows = [{"picture": layouts.encoded(n), "q": "What?", "a": f"Thing {n}", "who": f"person {n}"} for n in (0, 0, 1)]
    file = layouts.table(rows, tmp_path / "own.parquet")
    records, _ = read(file, "unimed-5m", columns={"input_img": "picture", "question": "q", "answer": "a", "patient": "who"}, modality="CT")
    assert [len(r.turns) for r in records] == [2, 1] and [r.patient for r in records] == ["person 0", "person 1"] and records[0].modality == "CT"


def test_of_captions_by_name_the_first_is_taken(tmp_path):
    """The Parquet of the published text-to-image loader: `image` and, as JSON, `captions`."""
    given = [json.dumps({"short": "An IHC slide.", "long": "A slide of the colon, stained."}), "{}", "A plain {caption}.", "{1", None]
    rows = [{"image": layouts.encoded(n), "captions": captions} for n, captions in enumerate(given)]
    records, aside = read(layouts.table(rows, tmp_path / "0.parquet"), "unimed-5m", columns={"output_img": "image", "caption": "captions"})
    assert not aside and [r.caption for r in records] == ["An IHC slide.", None, "A plain {caption}.", "{1", None] and same(records[0].images[0], 0)


@pytest.mark.parametrize("columns, told", [({"message": "absent"}, "absent"), ({"picture": "picture"}, "picture"), ({"input_img": "picture"}, "caption")])
def test_a_missing_column_is_named_with_those_there(tmp_path, columns, told):
    file = layouts.table([{"picture": b"1", "words": "2"}], tmp_path / "own.parquet")
    with pytest.raises(MissingColumn, match=told) as error:
        read(file, "unimed-5m", columns=columns)
    assert "words" in str(error.value) or "input_img" in str(error.value)


def test_slake(tmp_path):
    records, aside = read(layouts.slake(tmp_path), "slake")
    held, chest, liver, chinese = records
    assert not aside and [r.split for r in records] == ["test", "train", "train", "train"]
    assert chest.turns[1] == Turn("What diseases are there?", "None", "OPEN") and chest.left_out == 1
    assert chest.modality == "CXR" and liver.modality == "CT" and chest.license == "CC-BY-4.0" and "SLAKE" in chest.attribution
    assert chinese.turns == () and chinese.left_out == 1 and chinese.patient == held.patient == "xmlab3"
    known = {"qid": 7, "q_lang": "en", "content_type": "Organ", "base_type": "vqa", "triple": ["vhead", "_", "_"]}
    assert chest.labels["questions"][0] == {"question": "What modality is used?"} | known
    assert held.turns == (Turn("Is the heart enlarged?", "No", "CLOSED"),) and held.images[0]().size == (96, 96)


@pytest.mark.parametrize("written", ["imgs/", "./imgs/", "imgs\\\\"])
def test_slake_with_the_folder_in_the_pictures_names(tmp_path, written):
    for file in ("train.json", "test.json"):
        path = layouts.slake(tmp_path) / file
        path.write_text(path.read_text().replace('"xmlab', f'"{written}xmlab'))
        records, aside = read(path, "auto")
        assert not aside and records[-1].patient == "xmlab3" and records[-1].labels["boxes"] and all(r.images[0]().size for r in records)


def test_slake_in_both_languages(tmp_path):
    records, _ = read(layouts.slake(tmp_path), "slake", languages=("en", "zh"))
    assert sum(r.left_out for r in records) == 0 and records[3].turns == (Turn("这是什么?", "肺", "OPEN"),)


def test_vqa_rad_json(tmp_path):
    (train, test, other), aside = read(layouts.vqa_rad(tmp_path), "vqa-rad")
    assert not aside and (train.split, test.split) == ("train", "test") and train.patient == test.patient == "synpic1.jpg"
    assert train.turns == (Turn("Is there a nodule?", "yes", "CLOSED"), Turn("How many ribs are seen?", "12", "OPEN"))
    assert other.turns == (Turn("Where?", "right lobe", "OPEN"),) and train.license == "CC0-1.0" and train.labels["image_organ"] == "CHEST"
    # Nothing in the file says how a picture was taken.
    assert train.modality is None and train.images[0]().size == (96, 96)


def test_vqa_rad_in_two_files_of_which_rows_do_not_tell_the_split(tmp_path):
    rows = [layouts.vqa_rad_row(1, "Is it left?", "No", answer_type="CLOSED")]
    for name in ("trainset", "testset"):
        layouts.dump(rows, tmp_path / f"{name}.json")
    assert [(r.where, r.split) for r in read(tmp_path, "vqa-rad")[0]] == [("testset.json:synpic1.jpg:test", "test"), ("trainset.json:synpic1.jpg:train", "train")]


@pytest.mark.parametrize("format, folder", [("vqa-rad", "vqa-rad"), ("path-vqa", "path_vqa")])
def test_parquet_of_image_question_and_answer(tmp_path, format, folder):
    layouts.image_questions(tmp_path / folder / "data" / "train-00000-of-00001-ea5e.parquet")
    layouts.image_questions(tmp_path / folder / "data" / "validation-00000-of-00001.parquet", (8,))
    records, aside = read(tmp_path / folder, format, modality="Histopathology")
    assert not aside and [r.split for r in records] == ["train", "train", "val"] and [len(r.turns) for r in records] == [2, 1, 1]
    assert records[0].turns == (Turn("Question 0?", "mucosa", "OPEN"), Turn("Question 2?", "yes", "CLOSED")) and same(records[0].images[0], 7)
    assert records[1].patient == records[2].patient != records[0].patient
    assert records[0].license == ("CC0-1.0" if format == "vqa-rad" else None)


@pytest.mark.parametrize("format", ["vqa-rad", "path-vqa"])
def test_a_list_of_one_picture_is_that_picture(tmp_path, format):
    rows = [{"image": [{"bytes": layouts.encoded(n), "path": None}], "question": f"Question {q}?", "answer": "yes"} for n in (7, 8) for q in range(2)]
    records, aside = read(layouts.table(rows, tmp_path / "rows.parquet"), format)
    assert not aside and [len(r.turns) for r in records] == [2, 2] and same(records[1].images[0], 8)


@pytest.mark.parametrize("place", ["default/test/0000.parquet", "default/vqa-rad-test.parquet", "test-00000-of-00001.parquet", "VQA RAD test (1).parquet"])
@pytest.mark.parametrize("format", ["vqa-rad", "path-vqa", "unimed-5m"])
def test_the_split_of_a_parquet_file_is_that_of_its_name_or_folder(tmp_path, format, place):
    layouts.image_questions(tmp_path / place)
    records, aside = read(tmp_path, format, columns={"input_img": "image"})
    assert not aside and {r.split for r in records} == {"test"}


def test_the_split_of_a_jsonl_is_what_rows_or_people_say_or_else_its_name(tmp_path):
    row = {"message": layouts.talk("What?", "This.")}
    file = layouts.jsonl([row, row | {"split": "val"}], tmp_path / "test.jsonl")
    assert [r.split for r in read(file, "unimedvl-jsonl")[0]] == ["test", "val"]
    assert [r.split for r in read(file, "unimedvl-jsonl", split="train")[0]] == ["train", "val"]


def test_omni_med_vqa(tmp_path):
    layouts.omni(tmp_path)
    (first, second), aside = read(tmp_path, "omni-med-vqa", license="CC-BY-4.0")
    assert not aside and first.split == "test" and [vocabulary.modality(r.modality) for r in (first, second)] == ["MRI", "CT"]
    assert first.turns[0].question == "Question: Which organ?\nOptions:\nA. Liver\nB. Brain\nC. Brain\nD. Lung\nPlease select the correct answer from the options above."
    assert first.turns[0].answer == "Brain" and {t.kind for t in first.turns} == {"CLOSED"} and len(first.turns) == 2
    assert first.labels["questions"][0]["answer_letter"] == "B" and first.labels["questions"][0]["question_type"] == "Anatomy Identification"
    assert same(first.images[0], 9) and same(second.images[0], 10)


def test_gmai_mmbench(tmp_path):
    (both, one, unanswered), aside = read(layouts.gmai(tmp_path / "GMAI_mm_bench_VAL.tsv"), "gmai-mmbench", license="Apache-2.0")
    assert not aside and [t.answer for t in both.turns] == ["kidney", "liver"] and both.split == "val" and both.modality == "CT"
    first = both.labels["questions"][0]
    assert first["options"] == ["liver", "kidney"] and first["answer_letter"] == "B" and first["l2-category"] == "organ"
    assert same(both.images[0], 11) and same(one.images[0], 12) and unanswered.turns == ()
    assert unanswered.labels["questions"] == [] and unanswered.left_out == 1


def test_gmai_mmbench_with_every_cell_in_quotation_marks(tmp_path):
    rows = [layouts.gmai_row(0, 11), layouts.gmai_row(1, 12, "A")]
    with open(tmp_path / "VAL.tsv", "w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([list(rows[0]), *(row.values() for row in rows)])
    records, _ = read(tmp_path, "auto")
    assert [r.turns[0].answer for r in records] == ["kidney", "liver"]


def test_gmai_mmbench_with_an_answer_that_is_no_option(tmp_path):
    records, aside = read(layouts.gmai(tmp_path / "x.tsv", [layouts.gmai_row(0, 1, "E"), layouts.gmai_row(1, 2)]), "gmai-mmbench")
    assert len(records) == 1 and aside[0].reason == "malformed-record" and aside[0].where == "x.tsv:0" and "none of the options" in aside[0].detail


def test_med_mnist_tells_an_altered_mirror(tmp_path):
    records, aside = read(layouts.med_mnist(tmp_path / "pneumoniamnist_64.npz"), "med-mnist")
    assert [r.reason for r in aside] == ["altered-mirror"] * 3 and "3 train images where PneumoniaMNIST has 4,708" in aside[0].detail
    assert [r.split for r in records] == ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    assert records[1].turns == (Turn("What is the diagnosis? One of: normal; pneumonia.", "pneumonia", "CLOSED"),)
    assert records[1].caption == "CXR image, diagnosis: pneumonia." and records[1].labels == {"set": "PneumoniaMNIST", "classes": ["pneumonia"], "altered_mirror": True}
    assert records[0].images[0]().size == (64, 64) and records[0].modality == "CXR" and records[0].license == "CC-BY-4.0"


def test_med_mnist_with_the_published_counts(tmp_path):
    records, aside = read(layouts.med_mnist(tmp_path / "breastmnist.npz", (546, 78, 156), 28), "med-mnist")
    assert not aside and len(records) == 780 and "altered_mirror" not in records[0].labels


def test_med_mnist_of_many_findings_and_its_own_licences(tmp_path):
    chest, _ = read(layouts.med_mnist(tmp_path / "chestmnist.npz", labels=14), "med-mnist")
    assert chest[0].turns[0].answer == "none" and len(chest[1].labels["classes"]) == 14 and chest[1].turns[0].kind == "OPEN"
    skin, _ = read(layouts.med_mnist(tmp_path / "dermamnist.npz"), "med-mnist", license="CC-BY-4.0")
    assert skin[0].license == "CC-BY-NC-4.0"


def test_med_mnist_volumes_as_three_slices(tmp_path):
    volume = np.zeros((1, 28, 28, 28), np.uint8)
    volume[0, 7], volume[0, 14], volume[0, 21] = 1, 2, 3
    np.savez(tmp_path / "organmnist3d.npz", train_images=volume, train_labels=np.array([[3]]))
    (record,), _ = read(tmp_path / "organmnist3d.npz", "med-mnist")
    assert [int(np.asarray(opener()).max()) for opener in record.images] == [1, 2, 3] and record.turns[0].answer == "femur-right" and record.caption is None


def test_image_folder(tmp_path):
    records, aside = read(layouts.image_folder(tmp_path), "image-folder", modality="chest x-ray", license="CC0-1.0")
    told = {r.where: (r.split, r.labels.get("folder"), r.caption) for r in records}
    assert told == {
        "d.png": (None, None, None),
        "test/pneumonia/c.png": ("test", "pneumonia", "CXR image: pneumonia."),
        "train/normal/b.png": ("train", "normal", "CXR image: normal."),
        "train/pneumonia/a.png": ("train", "pneumonia", "CXR image: pneumonia."),
    }
    assert [(r.where, r.reason) for r in aside] == [("train/normal/90Rotated_b.png", "augmented-copy")]


@pytest.mark.parametrize("name, mode", [("mias.pgm", "L"), ("stare.ppm", "RGB"), ("x.jp2", "RGB"), ("x.JFIF", "RGB")])
def test_pictures_of_less_common_kinds(tmp_path, name, mode):
    picture = layouts.pictures()[3].convert(mode)
    (tmp_path / "normal").mkdir()
    picture.save(tmp_path / "normal" / name, "JPEG" if name.endswith("JFIF") else None)
    (record,), aside = read(tmp_path, "auto", modality="CFP", license="MIT")
    assert not aside and np.abs(np.asarray(record.images[0]()).astype(int) - np.asarray(picture)).mean() < 5


def test_the_source_fills_in_what_a_record_does_not_say(tmp_path):
    layouts.save(0, tmp_path / "a.png")
    layouts.jsonl([{"image": "a.png", "caption": "A slide."}, {"image": "a.png", "id": "b", "modality": "CT", "split": "test"}], tmp_path / "records.jsonl")
    records, _ = read(tmp_path, "records", modality="Histopathology", license="CC0-1.0", split="val", attribution="me")
    assert [(r.modality, r.split, r.license, r.attribution) for r in records] == [("Histopathology", "val", "CC0-1.0", "me"), ("CT", "test", "CC0-1.0", "me")]


def test_the_published_samples(shared_data):
    originals = shared_data / "unimed-real" / "original_formats"
    records, aside = read(originals / "slake_mini", "slake")
    assert not aside and len({r.patient for r in records}) == 16 and all(r.images[0]().size and (r.turns or r.left_out) for r in records)
    records, aside = read(originals / "medmnist", "med-mnist")
    assert len(records) == 3882 + 524 + 624 and [r.where for r in aside] == ["pneumoniamnist.npz:train"]


@pytest.mark.parametrize("added", ["QA_information", "QA_information/Open-access", "QA_information/Open-access/Demo.json"])
def test_omni_med_vqa_takes_no_pictures_from_outside_the_source(tmp_path, added):
    layouts.omni(tmp_path)
    (record, _), _ = read(tmp_path / added, "omni-med-vqa")
    with pytest.raises(Unreadable) as error:
        record.images[0]()
    assert error.value.reason == "missing-image"
    assert same(read(tmp_path / added, "omni-med-vqa", image_root=tmp_path)[0][0].images[0], 9)


@pytest.mark.parametrize("options, given, letter", [(["B", "A", "AB"], "A", "B"), (["AA", "Aa", "aa"], "aa", "C"), (["Liver", "Brain"], "brain", "B"), (["Liver", "Brain"], "A", "A")])
def test_omni_med_vqa_answers_with_the_text_of_an_option(tmp_path, options, given, letter):
    (record,), aside = read(layouts.dump([layouts.omni_row("a.png", "Which?", options, given)], tmp_path / "Demo.json"), "omni-med-vqa")
    assert not aside and record.turns[0].answer == options["ABC".index(letter)] and record.labels["questions"][0]["answer_letter"] == letter


def test_omni_med_vqa_with_an_answer_that_is_no_option(tmp_path):
    rows = [layouts.omni_row("a.png", "Which?", ["x", "y"], "z"), layouts.omni_row("a.png", "And?", [0.5, 1.5], 1), layouts.omni_row("a.png", "Well?", ["x", "y"], "x")]
    (record,), aside = read(layouts.dump(rows, tmp_path / "Demo.json"), "omni-med-vqa")
    assert len(record.turns) == 1 and [(r.where, r.reason) for r in aside] == [(f"Demo.json:{n}", "malformed-record") for n in (0, 1)]


@pytest.mark.parametrize("written", [json.dumps, str])
def test_gmai_mmbench_with_several_pictures(tmp_path, written):
    """VLMEvalKit's tables have Python's lists."""
    both = written([layouts.base64_text(11), layouts.base64_text(12)])
    (record,), (aside,) = read(layouts.gmai(tmp_path / "x.tsv", [layouts.gmai_row(0, 1, image=both), layouts.gmai_row(1, 1, image="[]")]), "gmai-mmbench")
    assert same(record.images[0], 11) and same(record.images[1], 12) and len(record.turns) == 1 and aside.reason == "malformed-record"
