"""Bad data: kept aside or converted as a user would expect, each with its reason, and nothing lost."""

import io
import json
import shutil
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from corpus import intake, quality, shards, vocabulary
from corpus.params import CorpusParams, QualityParams
from corpus.readers import records
from corpus.readers.pictures import PictureBytes
from corpus.readers.source import Source
from corpus.record import Unreadable
from corpus.sample import Turn
from infra.store import corpus_store
from ray_jobs.params import find_profile, load_params
from tests.corpus.test_originals import chunk
from tests.corpus.test_releases import SALT, record

GOOD = {"modality": "CT", "license": "CC0-1.0", "split": "train", "caption": "CT image of the abdomen."}


def take_in(path, name):
    source = Source(path, name)
    return intake.add(name, records.read(source), CorpusParams(), corpus_store(), b"salt")


@pytest.fixture(scope="module")
def source(tmp_path_factory, s3):
    """A folder in which almost everything is wrong, taken in: (record, kept samples, reasons by id)."""
    root = tmp_path_factory.mktemp("messy")
    rng = np.random.default_rng(0)

    def picture(name, mode="L", size=(64, 64), **options):
        noise = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        image = Image.fromarray(noise).convert(mode) if mode != "I;16" else Image.fromarray((noise[..., 0].astype(np.uint16) * 200))
        image.save(root / name, **options)
        return name

    whole = picture("whole.png")
    (root / "corrupt.jpg").write_bytes((root / picture("full.jpg")).read_bytes()[:700])
    (root / "text.png").write_text("not a picture")
    shutil.copy(root / whole, root / "copy.png")
    (root.parent / "outside.png").write_bytes((root / whole).read_bytes())
    (root / "link.png").symlink_to(root.parent / "outside.png")
    rotated = Image.fromarray(rng.integers(0, 255, (40, 80), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "Jane Doe"
    rotated.save(root / "rotated.jpg", exif=exif)
    records = [
        {"id": "good", "image": whole, **GOOD, "qa": [{"question": "How many?", "answer": 2, "answer_type": "CLOSED "}]},
        {"id": "corrupt", "image": "corrupt.jpg", **GOOD},
        {"id": "no-picture", "image": "text.png", **GOOD},
        {"id": "missing", "image": "absent.png", **GOOD},
        {"id": "outside", "image": "../outside.png", **GOOD},
        {"id": "absolute", "image": "/etc/hostname", **GOOD},
        {"id": "link", "image": "link.png", **GOOD},
        {"id": "unlicensed", "image": picture("u.png"), **GOOD, "license": ""},
        {"id": "secret-licence", "image": picture("s.png"), **GOOD, "license": "all rights reserved"},
        {"id": "odd", "image": picture("o.png"), **GOOD, "modality": "Telepathy"},
        {"id": "silent", "image": picture("q.png"), **GOOD, "caption": "NULL"},
        {"id": "tiny", "image": picture("small.png", size=(20, 20)), **GOOD},
        {"id": "double", "image": "copy.png", **GOOD, "split": "test"},
        {"id": "sixteen", "image": picture("16.png", "I;16"), **GOOD},
        {"id": "cmyk", "image": picture("cmyk.jpg", "CMYK"), **GOOD},
        {"id": "palette", "image": picture("p.png", "P"), **GOOD},
        {"id": "bit", "image": picture("b.png", "1"), **GOOD},
        {"id": "alpha", "image": picture("a.png", "RGBA"), **GOOD},
        {"id": "rotated", "image": "rotated.jpg", **GOOD},
        {"id": "pair-1", "image": picture("g1.png"), **GOOD, "group": "one person"},
        {"id": "pair-2", "image": picture("g2.png"), **GOOD, "group": "one person", "split": "test"},
        {"id": "good-again", "image": picture("ga.png"), **GOOD, "modality": "ct scan", "license": "cc0-1.0"},
        {"id": "good-again", "image": picture("gb.png"), **GOOD},
    ]
    lines = [json.dumps(r) for r in records] + ["{not json", '"a string"', json.dumps({"id": "no image"}), ""]
    (root / "records.jsonl").write_bytes("\n".join(lines).encode() + b"\n{\"id\": \"\xb0\", \"image\": \"whole.png\"}\n")
    record = take_in(root, "messy")
    store = corpus_store()
    removed = store.get_json(record["removed"])
    kept = [s for shard in record["shards"] for row, s in enumerate(shards.unpack(store.get(shard["key"]))) if row not in removed.get(shard["shard"], [])]
    aside = shards.read_quarantine(store.get(record["quarantine"]))
    return root, record, {sample.record.split("/")[1]: sample for sample in kept}, aside


def reason(aside, where):
    return next(r.reason for r in aside if where in r.where)


@pytest.mark.parametrize(
    "where, expected",
    [
        ("corrupt.jpg", "unreadable-image"),
        ("text.png", "unreadable-image"),
        ("absent.png", "missing-image"),
        ("outside.png", "path-outside-folder"),
        ("hostname", "path-outside-folder"),
        ("link.png", "path-outside-folder"),
        ("u.png", "no-licence"),
        ("s.png", "licence-not-allowed"),
        ("o.png", "unknown-modality"),
        ("q.png", "no-text"),
        ("small.png", "too-small"),
        ("messy/good#g", "duplicate"),
        ("messy/pair-1", "split-leakage"),
        ("messy/good-again", "duplicate-id"),
        ("records.jsonl:24", "malformed-record"),
        ("records.jsonl:25", "malformed-record"),
        ("records.jsonl:26", "malformed-record"),
    ],
)
def test_kept_aside_with_its_reason(source, where, expected):
    assert reason(source[3], where) == expected


@pytest.mark.parametrize("name, mode", [("sixteen", "L"), ("cmyk", "RGB"), ("palette", "RGB"), ("bit", "L"), ("alpha", "RGB"), ("good-again", "L")])
def test_converted(source, name, mode):
    sample = source[2][name]
    assert sample.images[0].open().mode == mode
    assert sample.modality == "CT" and sample.license == "CC0-1.0"


def test_sixteen_bits_keep_their_contrast(source):
    pixels = np.asarray(source[2]["sixteen"].images[0].open())
    assert pixels.min() < 5 and pixels.max() > 250


def test_exif_is_applied_and_stripped(source):
    image = source[2]["rotated"].images[0]
    assert (image.width, image.height) == (40, 80)
    assert b"Jane" not in image.data and not image.open().getexif()


def test_the_copy_in_the_test_split_is_the_one_kept(source):
    assert source[2]["double"].split == "test" and source[2]["pair-2"].split == "test"


def test_nothing_is_lost(source):
    record, aside = source[1], source[3]
    assert record["records"]["seen"] == record["records"]["kept"] + record["records"]["quarantined"] == 27
    assert len(aside) == record["records"]["quarantined"] + record["samples"]["quarantined"]


def test_no_machine_path_and_no_patient_is_kept(source):
    told = json.dumps([vars(r) for r in source[3]]) + json.dumps([s.to_row() | {"images": []} for s in source[2].values()])
    assert "one person" not in told and str(source[0]) not in told and "/etc" not in told


def test_adding_it_again_changes_nothing(source):
    again = take_in(source[0], "messy")
    assert again["how"] == "up to date" and again["shards"] == source[1]["shards"]


def test_it_is_the_same_however_many_records_are_examined_at_once(source):
    params = CorpusParams()

    def one_by_one(read):
        return (quality.examine(record, params.quality, b"salt") for record in read)

    again = intake.add("messy", records.read(Source(source[0], "messy")), params, corpus_store(), b"salt", one_by_one)
    assert again["how"] == "up to date" and again["quarantine"] == source[1]["quarantine"]
    aside = [int(r.where.split(":")[1].split(" ")[0]) for r in shards.read_quarantine(corpus_store().get(again["rejected"]))]
    assert aside == sorted(aside)


def test_a_folder_without_records_is_told(tmp_path, s3):
    with pytest.raises(FileNotFoundError, match="records.jsonl"):
        take_in(tmp_path, "empty")


@pytest.mark.slow
def test_real_packs(shared_data, s3):
    record = take_in(shared_data / "mednist", "mednist")
    assert record["records"] == {"seen": 1500, "kept": 1500, "quarantined": 0}
    record = take_in(shared_data / "unimed-real", "unimed-real")
    assert record["records"]["seen"] == 1384 and record["questions_left_out"] > 0


def test_whatever_a_decoder_raises_the_record_is_kept_aside():
    def stumble():
        raise ZeroDivisionError("JANE^DOE")

    outcome = quality.examine(record(0, images=(stumble,)), QualityParams(), SALT)
    assert (outcome.reason, outcome.detail) == ("unreadable-image", "cannot be processed (ZeroDivisionError)")


def dark(brightest: int, bright: int = 0) -> Image.Image:
    """Noise up to a grey level, and so many white pixels of 4,096."""
    pixels = np.random.default_rng(0).integers(0, brightest, (64, 64), dtype=np.uint8, endpoint=True)
    pixels.flat[:bright] = 255
    return Image.fromarray(pixels)


def test_a_dark_picture_that_shows_something_stays():
    assert isinstance(quality.examine(record(0, images=(lambda: dark(7, bright=5),)), QualityParams(), SALT), list)


@pytest.mark.parametrize(
    "known, reason",
    [
        ({"images": (lambda: Image.new("L", (64, 64), 7),)}, "blank"),
        ({"images": (lambda: dark(7),)}, "blank"),
        ({"images": (lambda: Image.effect_noise((640, 40), 50),)}, "odd-aspect"),
        ({"turns": (), "caption": "CT."}, "text-length"),
    ],
)
def test_thresholds_of_the_profile(known, reason):
    assert quality.examine(record(0, **known), QualityParams(min_caption=10), SALT).reason == reason


@pytest.mark.parametrize(
    "languages, caption, reason",
    [
        (("en", "zh"), "腹部CT图像显示肝脏。", None),
        (("en", "zh"), "CT of the liver.", None),
        (("en", "zh"), "КТ брюшной полости.", "caption-language"),
        (("en", "zh"), "Das CT zeigt die Leber und die Milz mit einer Zyste.", "caption-language"),
        (("zh",), "Axial slice of the liver.", "caption-language"),
        (("de", "en"), "Das CT zeigt die Leber und die Milz mit einer Zyste.", None),
        (("de",), "The CT of the liver and the spleen shows a cyst.", "caption-language"),
        (("ja", "en"), "КТ брюшной полости.", None),
    ],
)
def test_captions_are_of_the_languages_kept(languages, caption, reason):
    """Of a language whose writing is not known here, nothing is said."""
    outcome = quality.examine(record(0, caption=caption), QualityParams(languages=languages), SALT)
    assert getattr(outcome, "reason", None) == reason


@pytest.mark.parametrize(
    "size, reason, told",
    [
        ((3072, 512), None, ""),  # 512x85 px are a little more than 6 to 1
        ((3073, 512), "odd-aspect", "3073x512 px"),
        ((5120, 160), "too-small", "5120x160 px are 512x16 once scaled down"),
    ],
)
def test_a_strip_is_judged_as_it_came_and_as_it_would_be_kept(size, reason, told):
    """What a person let in with a shorter side below the limit would break each release."""
    outcome = quality.examine(record(0, images=(lambda: Image.effect_noise(size, 50),)), QualityParams(), SALT)
    assert getattr(outcome, "reason", None) == reason and told in getattr(outcome, "detail", "")


@pytest.mark.parametrize(
    "caption, reason",
    [
        ("MRI of the head.", "caption-contradicts"),
        ("Chest X-ray, two views. No CT was done.", "caption-contradicts"),
        ("腹部CT图像显示肝脏。", "caption-language"),
        ("Das CT zeigt die Leber und die Milz mit einer Zyste.", "caption-language"),
        ("CT del abdomen que muestra el hígado con una lesión.", "caption-language"),
        ("CT showing caput medusae and os coxae in situ, en face view of the aorta.", None),
        ("CT of the head after an MRI.", None),
        ("Axial slice of the liver. Compare the MRI of last year.", None),
        ("Ct value of the direct current.", None),
        ("ct scan of the brain, unlike the mri.", None),
        ("mri of the brain.", "caption-contradicts"),
        ("No MRI was made; axial slice of the liver.", None),
        ("Larger than on the previous chest X-ray.", None),
        ("No fracture on chest X-ray.", "caption-contradicts"),
        ("Mass in the fundus of the gallbladder; the gastric fundus is free.", None),
        ("Fundus photograph of the left eye.", "caption-contradicts"),
        ("Histologically proven carcinoma after ultrasound-guided biopsy.", None),
        ("Histology of the carcinoma.", "caption-contradicts"),
        ("No prior MRI or radiograph available.", None),
        ("Neither MRI nor ultrasound was done.", None),
        ("This is not an MRI scan.", None),
        ("MRI was not performed.", None),
        ("Slice of the liver, instead of an MRI.", None),
        ("MRI of the liver, not enhanced.", "caption-contradicts"),
        # Accents that stand behind their letters: an "e" alone is Italian.
        ("Elan, e\u0301lan, e\u0301clat, e\u0301tage.", None),
    ],
)
def test_captions_that_cannot_be_of_this_picture(caption, reason):
    outcome = quality.examine(record(0, caption=caption), QualityParams(), SALT)
    assert getattr(outcome, "reason", None) == reason


def test_texts_that_are_too_long_are_left_out_and_counted():
    turns = (Turn("What?", "x" * 2000, "OPEN"), Turn("Where?", "There.", "OPEN"))
    (sample,) = quality.examine(record(0, turns=turns, caption="y" * 2000, labels={"questions": [{"qid": 1}, {"qid": 2}]}), QualityParams(), SALT)
    assert sample.turns == [turns[1]] and sample.labels == {"questions": [{"qid": 2}], "texts_left_out": 2}


@pytest.mark.parametrize("field, detail", [("license", "its licence is none of CC0-1.0, "), ("modality", "none of CFP"), ("split", "none of train")])
@pytest.mark.parametrize("said", ["JaneDoe", ["CT", "JaneDoe"], {"JaneDoe": 1}])
def test_a_reason_does_not_repeat_what_the_record_says(field, detail, said):
    outcome = quality.examine(record(0, **{field: said}), QualityParams(), SALT)
    assert detail in outcome.detail and "JaneDoe" not in str(outcome)


@pytest.mark.parametrize("field", ["license", "modality"])
@pytest.mark.parametrize("said", [None, "", " "])
def test_the_option_is_told_that_says_what_a_record_does_not(field, said):
    assert f"--{field} names one" in quality.examine(record(0, **{field: said}), QualityParams(), SALT).detail
    assert "--" not in quality.examine(record(0, **{field: "PET"}), QualityParams(), SALT).detail


def test_a_licence_that_is_not_allowed_is_named_where_it_is_a_known_one():
    assert quality.examine(record(0, license="CC BY-NC 4.0"), QualityParams(), SALT).detail.startswith("licence CC BY-NC 4.0 is none of CC0-1.0, ")


@pytest.mark.parametrize(
    "written, meant",
    {
        "MIT License": "MIT", "The MIT License (MIT)": "MIT", "https://opensource.org/licenses/MIT": "MIT",
        "CC BY 4.0": "CC-BY-4.0", "cc-by-4.0": "CC-BY-4.0", "CC_BY_4": "CC-BY-4.0", "Creative Commons Attribution 4.0 International (CC BY 4.0)": "CC-BY-4.0",
        "http://creativecommons.org/licenses/by-sa/4.0/legalcode": "CC-BY-SA-4.0", "Creative Commons Attribution-ShareAlike 3.0 Unported License": "CC-BY-SA-3.0",
        "CC0": "CC0-1.0", "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/": "CC0-1.0",
        "Apache License, Version 2.0": "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0": "Apache-2.0", '3-clause BSD "New" License': "BSD-3-Clause", "odc-by": "ODC-BY-1.0",
        "CC BY": None, "CC BY-NC 4.0": None, "CC BY 3.0 US": None, "https://creativecommons.org/licenses/by/3.0/us/": None, "BSD": None, "MIT No Attribution": None,
        "CC BY 4.0 or MIT": None, "CC BY 4.0 (labels), CC BY-NC 4.0 (images)": None, "CC BY 4.0 (except logos)": None, "the license": None,
    }.items(),
)
def test_a_licence_is_known_by_its_published_spellings(written, meant):
    """But for what leaves a doubt, such as a licence without its version, or two."""
    assert vocabulary.license_id(written, vocabulary.LICENSES) == meant
    assert vocabulary.license_id("CC BY-NC-SA 4.0", ("CC-BY-NC-SA-4.0",))


def test_a_licence_of_any_length_takes_no_time():
    begun = time.process_time()
    assert vocabulary.license_id("(" * 50_000, vocabulary.LICENSES) is None and time.process_time() - begun < 1


@pytest.mark.parametrize(
    "written, meant",
    {
        "Computed Tomography (CT)": "CT", "OCT (Optical Coherence Tomography": "OCT", "MR（磁共振）": "MRI", "Chest X-Ray Images": "CXR", "MRI scans": "MRI", "fundus image": "CFP",
        "Whole Slide Image": "Histopathology", "endoscopic images": "Endoscopy", "dermoscopic": "Dermoscopy", "PET CT": None, "images": None, "(CT)": None,
        "Chest CT": "CT", "Brain_MRI": "MRI", "MRI, T2-weighted, sagittal": "MRI", "Chest X-rays": "CXR", "Lung X-ray": "CXR", "PA chest radiograph": "CXR", "X-Ray/CXR": "CXR", "hand X-ray": "X-ray",
        "H&E stained slide": "Histopathology", "Non-contrast CT of the abdomen": "CT", "Echocardiogram": "Ultrasound", "retinal fundus photographs": "CFP", "SD-OCT": "OCT", "mammograms": "X-ray",
    }.items(),
)
def test_a_modality_is_known_by_its_published_spellings(written, meant):
    assert vocabulary.modality(written) == meant


@pytest.mark.parametrize("written", ["PET-CT", "CT and MRI", "MRI to CT", "CT-guided biopsy", "endoscopic ultrasound", "fundus of the stomach", "no CT", "OCT angiography", "chest", "Mrs", "chest and hand X-ray", "CT" * 500])
def test_a_modality_is_not_guessed(written):
    assert vocabulary.modality(written) is None


def test_params_may_spell_modalities_and_licences_as_people_do():
    params = QualityParams.model_validate({"licenses": ["CC BY 4.0"], "burned_in": {"modalities": ["US"]}})
    assert params.burned_in.modalities == ("Ultrasound",)
    assert quality.examine(record(0, license="cc-by-4.0"), params, SALT)[0].license == "CC BY 4.0"


def test_values_that_are_no_numbers_do_not_spoil_a_picture():
    values = np.random.default_rng(0).random((64, 64), np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    (sample,) = quality.examine(record(0, images=(lambda: Image.fromarray(values),), caption=None), QualityParams(), SALT)
    pixels = np.asarray(sample.images[0].open())
    assert list(pixels[0, :3]) == [0, 255, 0] and pixels.std() > 50
    outcome = quality.examine(record(0, images=(lambda: Image.fromarray(values * np.nan),)), QualityParams(), SALT)
    assert outcome.reason == "unreadable-image"


@pytest.mark.parametrize("values", [np.uint16, np.float32])
@pytest.mark.parametrize("turned", [False, True])
def test_the_least_value_of_a_tiff_may_be_white(values, turned):
    ramp = np.arange(64 * 48).reshape(64, 48).astype(values)
    exif = Image.Exif()
    exif[0x0112] = 3 if turned else 1
    white, black = (quality.clean(PictureBytes(tiff(ramp, meaning, exif), 10**6)(), QualityParams())[0] for meaning in (0, 1))
    assert np.asarray(black)[0, 0] == (255 if turned else 0)
    assert np.abs(np.asarray(white, dtype=int) + np.asarray(black) - 255).max() <= 1


def tiff(values: np.ndarray, meaning: int, exif: Image.Exif) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", exif=exif)
    tag = (0x0106).to_bytes(2, "little") + b"\3\0\1\0\0\0"
    assert buffer.getvalue().count(tag + b"\1") == 1
    return buffer.getvalue().replace(tag + b"\1", tag + bytes((meaning,)))


@pytest.mark.parametrize("top, stays", [(65535, True), (4095, False)])
@pytest.mark.parametrize("form, channels", [("PNG", 2), ("PNG", 3), ("PNG", 4), ("TIFF", 3), ("TIFF", 4)])
def test_colours_of_twelve_bits_in_sixteen_are_told(form, channels, top, stays):
    values = np.random.default_rng(0).integers(0, top, (64, 64, channels), dtype=np.uint16)
    if channels != 3:
        values[..., -1] = 65535
    outcome = quality.examine(record(0, images=(PictureBytes(png(values) if form == "PNG" else colour_tiff(values), 10**6),)), QualityParams(), SALT)
    assert (isinstance(outcome, list) and np.asarray(outcome[0].images[0].open()).max() == top >> 8) if stays else "write it with 8" in outcome.detail


def png(values: np.ndarray) -> bytes:
    kind = {2: 4, 3: 2, 4: 6}[values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = (64).to_bytes(4, "big") * 2 + bytes((16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")))


def colour_tiff(values: np.ndarray) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb", extrasamples=["unassalpha"] if values.shape[2] == 4 else None)
    return buffer.getvalue()


@pytest.mark.parametrize("profile", ["tiny", "unimedvl-14b"])
def test_pictures_keep_all_the_pixels_that_a_profiles_stages_look_at(profile):
    params = load_params(find_profile(profile))
    sides = [sides[1] for stage in (*params.curriculum, *params.refresh) for sides in (stage.resolution.vit, stage.resolution.vae) if sides]
    rules = [params.model.image.vit.max_size, params.model.image.vae.max_size]
    assert params.corpus.quality.max_side >= max(sides or rules)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f2", ">f2", "<u8", ">u8", "<i8", ">u4", ">i2 packed", ">i4 packed", ">f4 packed", "<i1", "<i1 packed"])
def test_tiffs_of_numbers_that_pillow_refuses_or_misreads(kind, turned):
    import tifffile

    kind, _, packed = kind.partition(" ")
    ramp, buffer = np.linspace(-100 if kind[1] in "if" else 0, 100, 64 * 48).reshape(64, 48).astype(kind), io.BytesIO()
    tifffile.imwrite(buffer, ramp, byteorder=kind[0], photometric="minisblack", compression="zlib" if packed else None, extratags=[(0x0112, "H", 1, 3 if turned else 1, True)])
    shown = np.asarray(quality.clean(PictureBytes(buffer.getvalue(), 10**6)(), QualityParams()).picture, dtype=int)
    meant = np.rint(np.clip((ramp.astype(float) - np.percentile(ramp, 0.5)) / np.subtract(*np.percentile(ramp, [99.5, 0.5])), 0, 1) * 255)
    assert np.abs(shown - (meant[::-1, ::-1] if turned else meant)).max() <= 1


@pytest.mark.parametrize("options, told", [({"compression": "zlib"}, "compressed"), ({"photometric": "rgb"}, "only grey"), ({"shape": (2000, 2000)}, "limit"), ({"cut": 9}, "cut short")])
def test_a_tiff_of_long_numbers_that_cannot_be_read_is_told(options, told):
    import tifffile

    cut, buffer = options.pop("cut", 0), io.BytesIO()
    shape = options.pop("shape", (64, 64, 3) if "photometric" in options else (64, 64))
    tifffile.imwrite(buffer, np.ones(shape), **{"photometric": "minisblack"} | options)
    with pytest.raises(Unreadable, match=told):
        PictureBytes(buffer.getvalue()[: -cut or None], 10**6)()


@pytest.mark.parametrize("kind", [np.uint32, np.int32, np.uint16, np.float32])
def test_grey_values_of_a_tiff_keep_their_order_up_to_the_largest(kind):
    """Pillow reads unsigned numbers of 32 bits as signed ones."""
    import tifffile

    limits, buffer = np.finfo(kind) if kind is np.float32 else np.iinfo(kind), io.BytesIO()
    ramp = np.linspace(limits.min / 2, limits.max / 2, 64) * (2 if kind in (np.uint32, np.uint16) else 1)
    tifffile.imwrite(buffer, np.tile(ramp.astype(kind), (64, 1)), photometric="minisblack")
    shown = np.asarray(quality.clean(PictureBytes(buffer.getvalue(), 10**6)(), QualityParams()).picture, dtype=int)
    assert (np.diff(shown, axis=1) >= 0).all() and shown[0, 0] == 0 and shown[0, -1] == 255
