"""Quality control: each record becomes clean samples, or is kept aside with its reason."""

import logging
import math
import re
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import ExifTags, ImageOps

from corpus import burned_in, captions, originals, tasks, vocabulary
from corpus.params import BurnedInParams, QualityParams
from corpus.measures import Measuring
from corpus.patients import patient_key
from corpus.record import HeldBack, Record, Rejection, Unreadable
from corpus.sample import Image, Sample, Turn

# At level DEBUG Pillow logs the values of EXIF and TIFF tags, names among them.
logging.getLogger("PIL").setLevel(logging.INFO)

# TIFF's word for the meaning of 0, and the tag that tells what kind of numbers the values are.
_MIN_IS_WHITE = 0
_SAMPLE_FORMAT, _UNSIGNED = 339, 1
# What a record says is not repeated where a reason is told, as it may be a person's name; the terms of Creative Commons are none.
_KNOWN_LICENCE = re.compile(r"cc[ _-]?(0|by)([ _-](nc|nd|sa))*([ _-]\d(\.\d)?)?", re.IGNORECASE)


def examine(record: Record, params: QualityParams, salt: bytes) -> list[Sample] | Rejection:
    """The same as `examine_all`, of one record."""
    return examine_all([record], params, salt)[0]


def examine_all(records: Iterable[Record], params: QualityParams, salt: bytes) -> list[list[Sample] | Rejection]:
    """What becomes of each record: its samples, or why it is kept aside (see `_examine`)."""
    measuring = Measuring()
    outcomes = [_examine(record, params, salt, measuring) for record in records]
    measuring.finish()
    return outcomes


def _examine(record: Record, params: QualityParams, salt: bytes, measuring: Measuring) -> list[Sample] | Rejection:
    """Samples of a record: understanding where it has questions, generation where it has a caption, interleaved where it has a target.

    What a person may judge otherwise (a caption, text on the picture, its shape) is `HeldBack`, with the samples.
    """

    def reject(reason: str, detail: str) -> Rejection:
        return Rejection(record.source, record.where, reason, detail)

    license = vocabulary.license_id(record.license, params.licenses)
    if license is None:
        named = str(record.license or "").strip()
        told = f"licence {named}" if _KNOWN_LICENCE.fullmatch(named) else "its licence"
        return reject("licence-not-allowed", f"{told} is none of {', '.join(params.licenses)} (corpus.quality.licenses in params)") if named else reject("no-licence", "the record names no licence; --license names one for all that name none")
    modality = vocabulary.modality(record.modality) or (None if record.images else vocabulary.NO_PICTURE)
    if modality is None:
        named = str(record.modality or "").strip()
        return reject("unknown-modality", f"its modality is none of {', '.join(vocabulary.MODALITIES)}" if named else "the record names no modality; --modality names one for all that name none")
    split = vocabulary.split(record.split or "train")
    if split is None:
        return reject("unknown-split", "its split is none of train, val, test")
    fits = [max(len(t.question), len(t.answer)) <= params.max_text for t in record.turns]
    turns = list(compress(record.turns, fits))
    caption, instruction = (text if text and params.min_caption <= len(text) <= params.max_text else None for text in (record.caption, record.instruction))
    if not (turns or caption or (instruction and record.target)):
        told = record.turns or record.caption or record.instruction
        limits = f"every text is longer than {params.max_text} characters, or a caption shorter than {params.min_caption}"
        return reject("text-length", limits) if told else reject("no-text", "neither a caption nor an answered question in the languages kept")
    known = {"modality": modality, "source": record.source, "license": license, "attribution": record.attribution, "split": split}
    known |= {"patient": patient_key(salt, record.source, record.patient), "labels": _labels(record, fits, caption, instruction)}
    if not record.images:
        return [Sample(f"{record.source}/{record.id}#t", "text", parts=tasks.text(turns), **known)] if turns else reject("no-text", "neither a picture nor an answered question")
    if record.labels.get("burned_in") == "YES":
        return reject("burned-in-text", "its header says that identifying text is burned in")
    suspect = _is_suspect(record, modality, params.burned_in)
    try:
        cleaned = [clean(opener(), params, suspect) for opener in (*record.images, *([record.target] if instruction and record.target else []))]
        pictures = [c.picture for c in cleaned]
        measured = [measuring.add(picture) for picture in pictures]
    except Unreadable as error:
        return reject(error.reason, str(error))
    except Exception as error:
        # Decoders of strange files raise whatever they stumble over. Its words may hold what the file says.
        return reject("unreadable-image", f"cannot be processed ({type(error).__name__})")
    noted = next((c.was for c in cleaned if c.was), "")
    known["labels"] |= {"converted_from": noted} if noted else {}
    samples = _samples(record, pictures, measured, turns, caption, instruction, known)
    # Text on the picture comes first: whoever decides must know that it may name a patient.
    doubts = [("burned-in-text", "it seems to carry text, which may name the patient")] if any(c.carries_text for c in cleaned) else []
    doubts += [*_caption_doubts(caption, modality, params), *_picture_doubts(cleaned[0], measured[0]["entropy"], params)]
    if not doubts:
        return samples
    return HeldBack(record.source, record.where, doubts[0][0], "; ".join(detail for _, detail in doubts), samples[0].record, tuple(samples))


def _labels(record: Record, fits: list[bool], caption: str | None, instruction: str | None) -> dict:
    """What is known of a record: of its questions only those that stay, and how many of its texts are outside the limits."""
    questions = record.labels.get("questions")
    left_out = fits.count(False) + bool(record.caption and not caption) + bool(record.instruction and not instruction)
    stay = {"questions": list(compress(questions, fits))} if isinstance(questions, list) and len(questions) == len(fits) else {}
    return record.labels | (stay | {"texts_left_out": left_out} if left_out else {})


def _caption_doubts(caption: str | None, modality: str, params: QualityParams) -> Iterator[tuple[str, str]]:
    if caption and captions.contradicts(caption, modality):
        yield "caption-contradicts", f"the caption names another kind of picture than {modality}"
    if caption and not captions.may_be_in(params.languages, caption):
        yield "caption-language", "the caption is in another language than those kept"


def _samples(record: Record, pictures: list[Pillow.Image], measured: list[dict], turns: list[Turn], caption: str | None, instruction: str | None, known: dict) -> list[Sample]:
    """A sample for each task the record serves; the target, if there is one, is the last picture."""
    images = tuple(Image.encode(picture, lossy=picture.width * picture.height > 128 * 128) for picture in pictures)
    seen, made = images[: len(record.images)], []
    if turns:
        made.append(("u", "understanding", tasks.understanding(turns, len(seen)), seen, measured[len(seen) - 1]))
    if caption:
        made.append(("g", "generation", tasks.generation(caption), seen[:1], measured[0]))
    if instruction and record.target:
        made.append(("i", "interleaved", tasks.interleaved(instruction), (seen[0], images[-1]), measured[-1]))
    return [Sample(f"{record.source}/{record.id}#{mark}", task, parts=parts, images=shown, quality=quality, **known) for mark, task, parts, shown, quality in made]


def _is_suspect(record: Record, modality: str, params: BurnedInParams) -> bool:
    captured = record.labels.get("image_class") == "secondary capture"
    return modality in params.modalities or (captured and params.secondary_captures)


class Cleaned(NamedTuple):
    """A picture as it is kept; its mode before, if that had to change; whether it seems to carry text; and its size before it was scaled down."""

    picture: Pillow.Image
    was: str
    carries_text: bool
    size: tuple[int, int]


def clean(picture: Pillow.Image, params: QualityParams, suspect: bool = False) -> Cleaned:
    """The picture upright, as 8-bit grey or RGB, within the size limits. Only one that is `suspect` is searched for text.

    Raises:
        Unreadable: it is smaller than the limit, or is once it is scaled down, or has no numbers.
    """
    mode = picture.mode
    tags = getattr(picture, "tag_v2", {})
    # Pillow inverts 8 bits itself.
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == _MIN_IS_WHITE
    unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED and tags.get(ExifTags.Base.BitsPerSample, (0,))[0] == 32
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _windowed(picture, params.window_percentiles, inverted, unsigned)
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if min(picture.size) < params.min_side:
        raise Unreadable("too-small", f"{picture.width}x{picture.height} px; the shorter side must have {params.min_side}")
    # Before it is made smaller: what a person can read then is too small to be found.
    carries_text = suspect and burned_in.seems_to_carry_text(picture) >= params.burned_in.letters
    size = picture.size
    if max(size) > params.max_side:
        originals.unmark(picture)
        picture.thumbnail((params.max_side, params.max_side), Pillow.Resampling.LANCZOS)
    if min(picture.size) < params.min_side:
        raise Unreadable("too-small", f"{size[0]}x{size[1]} px are {picture.width}x{picture.height} once scaled down; the shorter side must have {params.min_side}")
    return Cleaned(picture, "" if mode in ("L", "RGB") else mode, carries_text, size)


def _windowed(picture: Pillow.Image, percentiles: tuple[float, float], inverted: bool, unsigned: bool) -> Pillow.Image:
    values = np.asarray(picture)
    # Of 32 bits without a sign Pillow makes numbers with one.
    values = values.view(np.uint32) if unsigned and values.dtype == np.int32 else values
    values = values.astype(np.float32) * (-1 if inverted else 1)
    # Only floating point has values that are no numbers; they become black, infinite ones the end they are at.
    finite = values[np.isfinite(values)] if picture.mode == "F" else values
    if not finite.size:
        raise Unreadable("unreadable-image", "none of its values is a number")
    low, high = np.percentile(finite, percentiles)
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255
    return Pillow.fromarray(np.nan_to_num(scaled, copy=False).astype(np.uint8))


def _picture_doubts(cleaned: Cleaned, entropy: float, params: QualityParams) -> Iterator[tuple[str, str]]:
    """A picture of one tone, a near-black one, or a strip."""
    if entropy < params.min_entropy:
        yield "blank", f"its grey levels carry less than {params.min_entropy} bits"
    # So few levels carry no more bits than that: only of such a picture all pixels are counted.
    elif entropy < math.log2(max(2, params.min_bright)) + 1 and _is_dark(cleaned.picture, params.min_bright):
        yield "blank", f"it is near-black: less than a pixel in a thousand has a grey level of {params.min_bright} or more"
    width, height = cleaned.size
    if max(width, height) > params.max_aspect * min(width, height):
        yield "odd-aspect", (f"{width}x{height} px; one side may be {params.max_aspect:g} times the other at most")


def _is_dark(picture: Pillow.Image, level: int) -> bool:
    levels = picture.convert("L").histogram()
    return 1000 * sum(levels[level:]) < sum(levels)
