"""UniMed-mini as samples: truth first, then the picture, captions, questions and image pairs that follow from it."""

import hashlib
from collections.abc import Iterator

import numpy as np
from PIL import Image as Pillow

from corpus import tasks
from corpus.params import PhantomParams
from corpus.phantoms.canvas import Canvas, to_pixels
from corpus.phantoms.scenes import MODALITIES, Modality, Places, Truth, ihc_of, t2_of
from corpus.sample import Image, Part, Sample, Turn

SOURCE, LICENSE, ATTRIBUTION = "unimed-mini", "CC0-1.0", "UniMed Ops procedural phantoms"

# Modalities whose findings are also marked: a few, so that no image-to-image task crowds out the others.
SEGMENTED = ("CXR", "Ultrasound", "Endoscopy")

FACTS = (
    ("Which modality uses a magnetic field?", "MRI"),
    ("Which modality uses sound waves?", "Ultrasound"),
    ("Which modality shows stained tissue?", "Histopathology"),
    ("Which modality looks into the colon?", "Endoscopy"),
    ("Which modality photographs the back of the eye?", "CFP"),
    ("Which modality shows layers of the retina?", "OCT"),
    ("Which modality is an X-ray of the chest?", "CXR"),
    ("Which modality takes slices with X-rays?", "CT"),
)


def samples(params: PhantomParams, salt: bytes) -> Iterator[Sample]:
    """All of UniMed-mini. A picture depends on seed, modality, patient and its number alone."""
    from corpus.patients import patient_key

    for modality in MODALITIES:
        for patient in range(params.patients_per_modality):
            name = f"{modality.name}-{patient:04d}"
            split = _split(patient, params)
            known = {"modality": modality.name, "split": split, "patient": patient_key(salt, SOURCE, name)}
            for number in range(params.images_per_patient):
                yield from _picture(modality, f"{name}-{number}", known, params)
    for number, (question, answer) in enumerate(FACTS):
        known = {"modality": answer, "split": "train", "patient": patient_key(salt, SOURCE, f"fact-{number}")}
        yield _sample(f"fact-{number:02d}", "text", known, tasks.text([Turn(question, answer, "OPEN")]), (), {})


def _split(patient: int, params: PhantomParams) -> str:
    place = (patient + 0.5) / params.patients_per_modality
    if place > 1 - params.test_share:
        return "test"
    return "val" if place > 1 - params.test_share - params.val_share else "train"


def _picture(modality: Modality, name: str, known: dict, params: PhantomParams) -> Iterator[Sample]:
    rng = np.random.default_rng(np.frombuffer(hashlib.sha256(f"{params.seed}/{name}".encode()).digest(), dtype=np.uint32))
    truth = _truth(modality, rng)
    places, canvas = _places(modality, truth, rng), Canvas(params.image_size)
    state = rng.bit_generator.state
    pixels = to_pixels(modality.draw(canvas, rng, truth, places))
    rng.bit_generator.state = state
    mask = _mask(pixels, to_pixels(modality.draw(canvas, rng, truth, []))) if truth.count else None
    image = Image.encode(Pillow.fromarray(pixels), lossy=True)
    labels = {"body_part": truth.body_part, "finding": truth.finding, "count": truth.count}
    labels |= {"side": truth.side, "size": truth.size} if truth.count else {}
    yield _sample(f"{name}#u", "understanding", known, tasks.understanding(_turns(truth)), (image,), labels)
    yield _sample(f"{name}#g", "generation", known, tasks.generation(caption(truth)), (image,), labels)
    for kind, instruction, before, after in _pairs(modality, truth, pixels, mask):
        pair = (Image.encode(Pillow.fromarray(before), lossy=True), Image.encode(Pillow.fromarray(after), lossy=True))
        yield _sample(f"{name}#{kind}", "interleaved", known, tasks.interleaved(instruction), pair, labels | {"pair": kind})


def _truth(modality: Modality, rng: np.random.Generator) -> Truth:
    count = int(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2]))
    size = "small" if count == 2 else str(rng.choice(["small", "large"]))
    return Truth(modality.name, modality.body_part, modality.finding, count, str(rng.choice(["left", "right"])), size)


def _places(modality: Modality, truth: Truth, rng: np.random.Generator) -> Places:
    """Centres of the findings on their side of the picture, far enough apart to be counted."""
    sign = -1 if truth.side == "left" else 1
    low, high = modality.y
    middle = (low + high) / 2
    rows = [(low, middle - 0.12), (middle + 0.12, high)] if truth.count == 2 else [(low, high)] * truth.count
    return [(sign * rng.uniform(*modality.x), rng.uniform(*row)) for row in rows]


def caption(truth: Truth) -> str:
    """What a radiologist would say in one line."""
    start = f"{truth.modality} image of the {truth.body_part}"
    if not truth.count:
        return f"{start} without {truth.finding}."
    number = {1: f"a {truth.size}", 2: f"two {truth.size}"}[truth.count]
    return f"{start} with {number} {truth.finding if truth.count == 1 else plural(truth.finding)} on the {truth.side}."


def plural(finding: str) -> str:
    return finding + ("es" if finding.endswith("s") else "s")


def _turns(truth: Truth) -> list[Turn]:
    turns = [
        Turn("Which imaging modality is this?", truth.modality, "OPEN"),
        Turn("Which part of the body is shown?", truth.body_part, "OPEN"),
        Turn(f"Is a {truth.finding} present?", "yes" if truth.count else "no", "CLOSED"),
        Turn(f"How many {plural(truth.finding)} are there?", str(truth.count), "OPEN"),
    ]
    if truth.count:
        turns.append(Turn(f"On which side is the {truth.finding}?", truth.side, "CLOSED"))
        turns.append(Turn(f"Is the {truth.finding} small or large?", truth.size, "CLOSED"))
    return turns


def _mask(pixels: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Where the findings are: exactly where the picture differs from the same one without them."""
    differs = np.abs(pixels.astype(int) - clear) > 12
    return np.where(differs.any(axis=-1) if differs.ndim == 3 else differs, 255, 0).astype(np.uint8)


def _pairs(modality: Modality, truth: Truth, pixels: np.ndarray, mask: np.ndarray | None) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(kind, instruction, input, output) of the image-to-image tasks this picture takes part in."""
    if mask is not None and modality.name in SEGMENTED:
        yield "segmentation", f"Mark every {truth.finding} in this image.", pixels, mask
    if modality.name == "MRI":
        yield "translation", "Translate this T1 image to T2.", pixels, t2_of(pixels)
    if modality.name == "Histopathology":
        yield "staining", "Turn this H&E slide into an IHC stain.", pixels, ihc_of(pixels)
    if modality.name in ("CT", "CXR"):
        picture = Pillow.fromarray(pixels)
        small = picture.resize((picture.width // 4, picture.height // 4), Pillow.Resampling.BOX)
        yield "super-resolution", "Raise the resolution of this image.", np.asarray(small.resize(picture.size, Pillow.Resampling.BICUBIC)), pixels


def _sample(name: str, task: str, known: dict, parts: tuple[Part, ...], images: tuple[Image, ...], labels: dict) -> Sample:
    return Sample(f"{SOURCE}/{name}", task, source=SOURCE, license=LICENSE, attribution=ATTRIBUTION, parts=parts, images=images, labels=labels, **known)
