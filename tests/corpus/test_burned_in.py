"""Burned-in text is found in real pictures, and not where there is none."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageFilter

from corpus.burned_in import seems_to_carry_text
from corpus.params import BurnedInParams, QualityParams
from corpus.readers import dicom, records
from corpus.readers.source import Source
from tests.corpus import dicom_table
from tests.corpus.taking_in import take_in

LEAST = BurnedInParams().letters


def tissue(width=256, height=192, level=70) -> Image.Image:
    """Smooth texture such as an ultrasound's."""
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 255, (height, width), dtype=np.uint8))
    return noise.filter(ImageFilter.GaussianBlur(3)).point(lambda v: (v - 127) * 2 + level).convert("RGB")


def written(picture: Image.Image, text: str, size: int, colour, outline: int = 0) -> Image.Image:
    ImageDraw.Draw(picture).text((6, 8), text, colour, ImageFont.load_default(size), stroke_width=outline, stroke_fill="black")
    return picture


@pytest.mark.parametrize("size", [9, 12, 16, 24])
@pytest.mark.parametrize("colour, outline", [("white", 0), ("yellow", 0), ("#b4b4b4", 0), ("white", 1)])
@pytest.mark.parametrize("text", ["SMITH, JANE", "12/03/1957"])
def test_written_names_and_dates_are_found(size, colour, outline, text):
    assert seems_to_carry_text(written(tissue(), text, size, colour, outline)) >= LEAST


@pytest.mark.parametrize("colour", ["blue", "red", "#0000b4"])
@pytest.mark.parametrize("size", [12, 20])
def test_letters_of_a_strong_colour_are_found(size, colour):
    assert seems_to_carry_text(written(tissue(level=40), "SMITH, JANE", size, colour)) >= LEAST


@pytest.mark.parametrize("picture", [tissue(), tissue(level=180), Image.new("L", (200, 200)), Image.new("RGB", (40, 40), "white")])
def test_nothing_is_found_where_nothing_is_written(picture):
    assert seems_to_carry_text(picture) < LEAST


def test_dark_letters_on_light_ground_are_found():
    assert seems_to_carry_text(written(tissue(level=200), "Garcia, Maria", 14, "black")) >= LEAST


@pytest.mark.parametrize("name", ["examples_jpeg2k.dcm", "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm"])
def test_real_ultrasound_with_a_hospital_written_on_it_is_set_aside(name):
    taken = take_in(dicom, Source(dicom_table.files()[name], "s", license="MIT"))
    assert not taken.samples and set(taken.reasons) == {"burned-in-text"}


def test_where_it_is_looked_for_is_a_matter_of_params(tmp_path):
    written(tissue(), "SMITH, JANE", 16, "white").save(tmp_path / "a.png")
    for modality in ("Ultrasound", "CT"):
        (tmp_path / "records.jsonl").write_text(json.dumps({"image": "a.png", "modality": modality, "license": "MIT", "caption": "An image."}))
        assert take_in(records, Source(tmp_path, "s")).reasons == (["burned-in-text"] if modality == "Ultrasound" else [])
    params = QualityParams(burned_in=BurnedInParams(modalities=("CT",)))
    taken = take_in(records, Source(tmp_path, "s"), params)
    assert taken.reasons == ["burned-in-text"] and "SMITH" not in taken.aside[0].detail


def test_real_ultrasound_without_text_is_kept(shared_data):
    folder = shared_data / "unimed-real"
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    plain = [row["image"] for row in rows if row["modality"] == "Ultrasound"][:40]
    assert sum(seems_to_carry_text(Image.open(folder / name)) >= LEAST for name in plain) <= 8
