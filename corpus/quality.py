"""Quality control: each record becomes clean samples, or is kept aside with its reason."""

import logging
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from corpus import burned_in, tasks, vocabulary
from corpus.params import BurnedInParams, QualityParams
from corpus.patients import patient_key
from corpus.record import Record, Rejection, Unreadable
from corpus.sample import SPLITS, Image, Sample

# At level DEBUG Pillow logs the values of EXIF and TIFF tags, names among them.
logging.getLogger("PIL").setLevel(logging.INFO)


def examine(record: Record, params: QualityParams, salt: bytes) -> list[Sample] | Rejection:
    """Samples of a record: understanding where it has questions, generation where it has a caption, interleaved where it has a target."""

    def reject(reason: str, detail: str) -> Rejection:
        return Rejection(record.source, record.where, reason, detail)

    license = vocabulary.license_id(record.license, params.licenses)
    if license is None:
        named = bool(str(record.license or "").strip())
        return reject("licence-not-allowed", f"licence {record.license!r}") if named else reject("no-licence", "the record names no licence")
    modality = vocabulary.modality(record.modality)
    if modality is None:
        return reject("unknown-modality", f"modality {record.modality!r} is not one of {', '.join(vocabulary.MODALITIES)}")
    split = vocabulary.split(record.split or "train")
    if split is None:
        return reject("unknown-split", f"split {record.split!r}")
    turns = [t for t in record.turns if max(len(t.question), len(t.answer)) <= params.max_text]
    caption, instruction = (text if text and len(text) <= params.max_text else None for text in (record.caption, record.instruction))
    if not (turns or caption or (instruction and record.target)):
        return reject("no-text", "neither a caption nor an answered question in the languages kept")
    if record.labels.get("burned_in") == "YES":
        return reject("burned-in-text", "its header says that identifying text is burned in")
    suspect = _is_suspect(record, modality, params.burned_in)
    try:
        cleaned = [clean(opener(), params, suspect) for opener in (*record.images, *([record.target] if instruction and record.target else []))]
    except Unreadable as error:
        return reject(error.reason, str(error))
    images = tuple(Image.encode(picture, lossy=picture.width * picture.height > 128 * 128) for picture, _ in cleaned)
    seen = images[: len(record.images)]
    noted = next((mode for _, mode in cleaned if mode), "")
    labels = record.labels | ({"converted_from": noted} if noted else {})
    known = {"modality": modality, "source": record.source, "license": license, "attribution": record.attribution, "split": split}
    known |= {"patient": patient_key(salt, record.source, record.patient), "labels": labels}
    made = []
    if turns:
        made.append(("u", "understanding", tasks.understanding(turns, len(seen)), seen))
    if caption:
        made.append(("g", "generation", tasks.generation(caption), seen[:1]))
    if instruction and record.target:
        made.append(("i", "interleaved", tasks.interleaved(instruction), (seen[0], images[-1])))
    return [Sample(f"{record.source}/{record.id}#{mark}", task, parts=parts, images=shown, **known) for mark, task, parts, shown in made]


def _is_suspect(record: Record, modality: str, params: BurnedInParams) -> bool:
    captured = record.labels.get("image_class") == "secondary capture"
    return modality in params.modalities or (captured and params.secondary_captures)


def clean(picture: Pillow.Image, params: QualityParams, suspect: bool = False) -> tuple[Pillow.Image, str]:
    """The picture upright, as 8-bit grey or RGB, within the size limits; and what it was, if it had to change.

    Raises:
        Unreadable: it is smaller than the limit, or `suspect` and seems to carry text.
    """
    mode = picture.mode
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = _windowed(picture, params.window_percentiles)
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    elif picture.mode not in ("L", "RGB"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if min(picture.size) < params.min_side:
        raise Unreadable("too-small", f"{picture.width}x{picture.height} px; the shorter side must have {params.min_side}")
    # Before it is made smaller: what a person can read then is too small to be found.
    if suspect and burned_in.seems_to_carry_text(picture) >= params.burned_in.letters:
        raise Unreadable("burned-in-text", "it seems to carry text, which may name the patient")
    picture.thumbnail((params.max_side, params.max_side), Pillow.Resampling.LANCZOS)
    return picture, "" if mode in ("L", "RGB") else mode


def _windowed(picture: Pillow.Image, percentiles: tuple[float, float]) -> Pillow.Image:
    values = np.asarray(picture, dtype=np.float32)
    low, high = np.percentile(values, percentiles)
    return Pillow.fromarray((np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8))


def settle(samples: Iterable[Sample]) -> tuple[list[Sample], list[Rejection]]:
    """Checks that need to see everything: ids, duplicate pictures, contradictions, patients across splits.

    The copy in the more protected split stays (test before validation before training), so that no picture
    and no patient of the test set is trained on.
    """
    kept, aside = _unique_ids(samples)
    for check in (_contradictions, _duplicates, _leaks):
        kept, more = check(kept)
        aside += more
    return kept, aside


def _unique_ids(samples: Iterable[Sample]) -> tuple[list[Sample], list[Rejection]]:
    seen, aside = {}, []
    for sample in samples:
        if sample.id in seen:
            aside.append(_aside(sample, "duplicate-id", f"id {sample.id} occurs twice in the source"))
        else:
            seen[sample.id] = sample
    return list(seen.values()), aside


def _contradictions(samples: list[Sample]) -> tuple[list[Sample], list[Rejection]]:
    """One picture, one question, two answers: nobody can tell which is right."""
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in samples:
        if sample.task == "understanding":
            for turn in sample.turns:
                answers[sample.images[0].sha256, turn.question.casefold()].add(turn.answer.casefold())
    bad = {picture for (picture, _), given in answers.items() if len(given) > 1}
    contradicts = [s.task == "understanding" and s.images[0].sha256 in bad for s in samples]
    aside = [_aside(s, "conflicting-labels", "the same picture has another answer to the same question elsewhere") for s, c in zip(samples, contradicts) if c]
    return [s for s, c in zip(samples, contradicts) if not c], aside


def _duplicates(samples: list[Sample]) -> tuple[list[Sample], list[Rejection]]:
    """Records that show a picture another record of a better protected split (or an earlier one) shows."""
    owner: dict[str, Sample] = {}
    for sample in samples:
        if sample.images and sample.task != "interleaved":
            picture = sample.images[-1].sha256
            first = owner.get(picture)
            if first is None or SPLITS.index(sample.split) > SPLITS.index(first.split):
                owner[picture] = sample
    kept, aside = [], []
    for sample in samples:
        first = owner.get(sample.images[-1].sha256) if sample.images and sample.task != "interleaved" else None
        if first is None or first.record == sample.record:
            kept.append(sample)
        else:
            aside.append(_aside(sample, "duplicate", f"the same picture as {first.record} ({first.split})"))
    return kept, aside


def _leaks(samples: list[Sample]) -> tuple[list[Sample], list[Rejection]]:
    protected: dict[str, str] = {}
    for sample in samples:
        protected[sample.patient] = max(protected.get(sample.patient, "train"), sample.split, key=SPLITS.index)
    leaks = [s for s in samples if s.split != protected[s.patient]]
    kept = [s for s in samples if s.split == protected[s.patient]]
    return kept, [_aside(s, "split-leakage", f"the same patient or group is in {protected[s.patient]}") for s in leaks]


def _aside(sample: Sample, reason: str, detail: str) -> Rejection:
    return Rejection(sample.source, sample.id, reason, detail)
