"""Small folders in each published layout, made of the real pictures that pinned packages ship."""

import base64
import csv
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from corpus.readers import package_images


@cache
def pictures() -> list[Image.Image]:
    """Tiles of a slide, a fundus, a CT and MR, all different."""
    return [record.images[0]() for record in package_images.read()]


def encoded(number: int, format: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pictures()[number].save(stream, format)
    return stream.getvalue()


def base64_text(number: int) -> str:
    return base64.b64encode(encoded(number)).decode()


def save(number: int, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures()[number].convert("RGB").save(file)
    return file


def dump(value: object, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return file


def jsonl(rows: list, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def table(rows: list[dict], file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def talk(*words: str) -> list[dict]:
    return [{"from": who, "value": said} for who, said in zip(("human", "gpt") * len(words), words)]


def unimedvl(root: Path) -> Path:
    """One row of each task, and a second question about the first picture."""
    for number in range(5):
        save(number, root / "images" / f"{number}.png")

    def row(task: str, inputs: list[int], outputs: list[int], *words: str) -> dict:
        named = [[{"path": f"/images/{n}.png", "height": 96, "width": 96} for n in numbers] for numbers in (inputs, outputs)]
        known = {"main_task_type": task, "sub_task_type": "vqa", "modality": "HIS", "dataset": "quilt"}
        return known | {"input_img": named[0], "output_img": named[1], "message": talk(*words)}

    rows = [
        row("understanding", [0], [], "<image>\nWhat stain is this?", "IHC"),
        row("understanding", [0], [], "<image> Is it colon?", "Yes"),
        row("generation", [], [1], "Draw an IHC slide of the colon.", "<think>Colon.</think>\nHere it is:\n- glands"),
        row("interleaved", [2], [3], "<image>Stain this slide.", "Done."),
        row("text-only", [], [], "What is IHC?", "Immunohistochemistry."),
        row("understanding", [0, 4], [], "<image><image>Which is darker?", "The first.", "Sure?", "Yes"),
    ]
    return jsonl(rows, root / "train.jsonl")


def slake_row(image: int, question: str, answer: str, **other: object) -> dict:
    known = {"img_id": image, "img_name": f"xmlab{image}/source.jpg", "q_lang": "en", "location": "Lung", "modality": "X-Ray", "answer_type": "OPEN"}
    return known | {"question": question, "answer": answer, "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": 7} | other


def slake(root: Path) -> Path:
    for image in (1, 2, 3):
        folder = root / "imgs" / f"xmlab{image}"
        save(image, folder / "source.jpg")
        save(image, folder / "mask.png")
        dump([{"Lung": [10.0, 12.0, 20.0, 30.0]}, {"Nodule": [5.0, 5.0, 0.0, 4.0]}], folder / "detection.json")
        dump([slake_row(image, "Is it a lung?", "Yes")], folder / "question.json")
    rows = [
        slake_row(1, "What modality is used?", "X-Ray"),
        slake_row(2, "Which organ?", "Liver", modality="CT", location="Abdomen"),
        slake_row(1, "What diseases are there?", "None"),
        slake_row(1, "这是什么?", "肺", q_lang="zh"),
        slake_row(3, "这是什么?", "肺", q_lang="zh"),
    ]
    dump(rows, root / "train.json")
    dump([slake_row(3, "Is the heart enlarged?", "No", answer_type="CLOSED", triple="['vhead', '_', '_']")], root / "test.json")
    return root


def vqa_rad_row(picture: int, question: str, answer: object, **other: object) -> dict:
    known = {"qid": 1, "phrase_type": "freeform", "qid_linked_id": "03f451ca", "image_case_url": "https://example.org/1", "image_name": f"synpic{picture}.jpg"}
    known |= {"image_organ": "CHEST", "evaluation": "not evaluated", "question_rephrase": "NULL", "question_relation": "NULL", "question_frame": "NULL"}
    return known | {"question": question, "question_type": "PRES, POS", "answer": answer, "answer_type": "OPEN"} | other


def vqa_rad(root: Path) -> Path:
    for picture in (1, 2):
        save(picture + 4, root / "VQA_RAD Image Folder" / f"synpic{picture}.jpg")
    rows = [
        vqa_rad_row(1, "Is there a nodule?", "yes", answer_type="CLOSED "),
        vqa_rad_row(1, "How many ribs are seen?", 12, qid="2"),
        vqa_rad_row(1, "Is it left?", "No", phrase_type="test_freeform", answer_type="CLOSED"),
        vqa_rad_row(2, "Where?", "right\tlobe", extra_key="re-saved"),
        vqa_rad_row(2, "What else?", "NULL"),
    ]
    del rows[3]["question_rephrase"]
    return dump(rows, root / "VQA_RAD Dataset Public.json")


def image_questions(file: Path, pictures: tuple[int, ...] = (7, 8, 7)) -> Path:
    """Hugging Face's Parquet of image, question and answer; the first picture comes back later."""
    rows = [{"image": {"bytes": encoded(p), "path": None}, "question": f"Question {n}?", "answer": "yes" if n else "mucosa"} for n, p in enumerate(pictures)]
    return table(rows, file)


def omni_row(picture: str, question: str, options: list[str], answer: str, **other: object) -> dict:
    known = {"dataset": "Demo", "question_id": "Demo_0001", "question_type": "Anatomy Identification", "question": question, "gt_answer": answer}
    known |= {"image_path": f"Images/Demo/{picture}", "modality_type": "MR (Mag-netic Resonance Imaging)"}
    return known | {f"option_{letter}": said for letter, said in zip("ABCD", options)} | other


def omni(root: Path) -> Path:
    save(9, root / "Images" / "Demo" / "a b.png")
    save(10, root / "Images" / "Demo" / "切片.png")
    second = omni_row("切片.png", "Is it a head?", ["Yes", "No"], "Yes", modality="CT(Computed Tomography)")
    del second["modality_type"]
    rows = [omni_row("a b.png", "Which organ?", ["Liver", "Brain", "Brain", "Lung"], "brain"), second, omni_row("a b.png", "Which plane?", ["Axial", "Coronal"], "Axial")]
    return dump(rows, root / "QA_information" / "Open-access" / "Demo.json")


def gmai_row(index: int, picture: int, answer: str = "B", **other: object) -> dict:
    known = {"index": index, "image": base64_text(picture), "question": "What is shown?", "A": "liver", "B": "kidney", "C": "", "answer": answer}
    known |= {"category": "OR", "l2-category": "organ", "split": "VAL", "clinical VQA task": "Organ Recognition", "department": "Urology"}
    return known | {"perceptual granularity": "image", "modality": "CT", "original task": "classification"} | other


def gmai(file: Path, rows: list[dict] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = rows or [gmai_row(0, 11), gmai_row(1, 11, "A"), gmai_row(2, 12), gmai_row(3, 13, "")]
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t")
        # A header with a blank in front, as it is met.
        writer.writerow([f" {name}" if name == "modality" else name for name in rows[0]])
        writer.writerows(row.values() for row in rows)
    return file


def med_mnist(file: Path, counts: tuple[int, int, int] = (3, 2, 2), size: int = 64, labels: int | None = None) -> Path:
    """Grey tiles in MedMNIST's layout; `labels` columns for the set of many findings."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts):
        tiles = [np.asarray(pictures()[n % 30].convert("L").resize((size, size))) for n in range(count)]
        arrays[f"{split}_images"] = np.stack(tiles)
        arrays[f"{split}_labels"] = np.array([[n % 2] * (labels or 1) for n in range(count)], dtype=np.uint8)
    np.savez_compressed(file, **arrays)
    return file


def image_folder(root: Path) -> Path:
    for number, name in enumerate(("train/pneumonia/a.png", "train/normal/b.png", "test/pneumonia/c.png", "train/normal/90Rotated_b.png", "d.png")):
        save(14 + number, root / name)
    return root
