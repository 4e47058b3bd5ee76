"""The benchmarks: what each asks the model, and how each answer is scored. One function a benchmark."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL.Image import Image

from corpus.reader import ReleaseReader
from corpus.sample import Sample
from model import UniMedVL
from model.answer_metrics import exact_match
from model.image_metrics import psnr, ssim
from model.preprocess import resize
from ray_jobs.evaluate_params import EvaluationParams
from ray_jobs.modality_probe import Probe, fit

# Drawings are judged against pictures of people and tissue where there are enough of them.
PHANTOMS = "unimed-mini"
# (sample, turn) of each source.
Questions = dict[str, list[tuple[Sample, int]]]


@dataclass(frozen=True)
class Item:
    """One scored item. `slices` are the groups it counts in."""

    benchmark: str
    id: str
    score: float
    answer: str
    truth: str
    slices: tuple[str, ...] = ()


@dataclass
class Drawings:
    """What was drawn, for the contact sheet: (prompt, real picture, drawn picture, judged modality)."""

    rows: list[tuple[str, Image, Image, str]] = field(default_factory=list)
    probe: Probe | None = None


def questions(reader: ReleaseReader, split: str, limit: int) -> Questions:
    """At most `limit` questions a source, spread evenly. No other samples are loaded: a split's pictures may not fit in memory."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    turns = reader.turns()
    for position in reader.select(split, "understanding"):
        found[reader.index[position].source] += [(position, turn) for turn in range(turns[position])]
    return {source: [(reader.load(position), turn) for position, turn in evenly(asked, limit)] for source, asked in sorted(found.items())}


def vqa(model: UniMedVL, reader: ReleaseReader, params: EvaluationParams) -> Iterator[Item]:
    """The test split's questions, answered."""
    return answered(model, questions(reader, "test", params.max_questions), params)


def answered(model: UniMedVL, asked_by_source: Questions, params: EvaluationParams) -> Iterator[Item]:
    """Each question alone, greedy, scored by exact match (lower case, no punctuation or articles)."""
    for source, asked in asked_by_source.items():
        for start in range(0, len(asked), params.batch):
            chunk = asked[start : start + params.batch]
            conversations = [[sample.images[0].open(), sample.turns[turn].question] for sample, turn in chunk]
            for (sample, turn), answer in zip(chunk, model.chat_batch(conversations, max_new_tokens=params.max_new_tokens)):
                yield _judged(source, sample, turn, answer.text)


def prior(reader: ReleaseReader, params: EvaluationParams) -> Iterator[Item]:
    """The baseline without a model: each question's commonest training answer of its source."""
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for position in reader.select("train", "understanding"):
        sample = reader.load(position)
        for turn in sample.turns:
            answers[sample.source, turn.question].append(turn.answer)
    commonest = {key: max(sorted(set(given)), key=given.count) for key, given in answers.items()}
    for source, asked in questions(reader, "test", params.max_questions).items():
        for sample, turn in asked:
            yield _judged(source, sample, turn, commonest.get((source, sample.turns[turn].question), ""))


def drawing(model: UniMedVL, reader: ReleaseReader, params: EvaluationParams, seed: int, drawn: Drawings) -> Iterator[Item]:
    """Text to image: is the drawing of the requested modality, by a probe trained on pictures of its own sources?"""
    judged_sources = _judged_sources(reader)
    drawn.probe = _probe(reader, judged_sources, params, seed)
    wanted = [i for i in _of(reader, "test", judged_sources) if reader.index[i].modality in drawn.probe.modalities]
    chosen = [reader.load(i) for i in _by_modality(reader, wanted, params.max_drawings)]
    for start in range(0, len(chosen), params.batch):
        chunk = chosen[start : start + params.batch]
        pictures = model.draw_batch([[s.parts[0].text] for s in chunk], seeds=[seed + start + i for i in range(len(chunk))])
        for sample, picture, judged in zip(chunk, pictures, drawn.probe.predict(pictures)):
            drawn.rows.append((sample.parts[0].text, sample.images[0].open(), picture, judged))
            slices = (f"modality={sample.modality}",)
            yield Item("generation/modality-agreement", sample.id, float(judged == sample.modality), judged, sample.modality, slices)


def pairs(model: UniMedVL, reader: ReleaseReader, params: EvaluationParams, seed: int) -> Iterator[Item]:
    """Image to image: PSNR and SSIM against the true picture, in its size."""
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for position in reader.select("test", "interleaved"):
        sample = reader.load(position)
        kinds[sample.labels.get("pair", "pair")].append(sample)
    for kind, found in sorted(kinds.items()):
        chosen = evenly(found, params.max_pairs)
        truths = [resize(s.images[-1].open(), model.config.image.vae) for s in chosen]
        drawn = _drawn(model, chosen, [truth.size for truth in truths], seed)
        for sample, made, truth in zip(chosen, map(np.asarray, drawn), map(np.asarray, truths)):
            yield Item(f"interleaved/{kind}-psnr", sample.id, psnr(made, truth), "", "", ())
            yield Item(f"interleaved/{kind}-ssim", sample.id, ssim(made, truth), "", "", ())


def _drawn(model: UniMedVL, samples: list[Sample], sizes: list[tuple[int, int]], seed: int) -> list[Image]:
    """What the model makes of each sample's first image, in the size asked for; those of one size are drawn together."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, size in enumerate(sizes):
        places[size].append(place)
    drawn: dict[int, Image] = {}
    for size, members in places.items():
        inputs = [[samples[i].images[0].open(), next(p.text for p in samples[i].parts if p.kind == "text")] for i in members]
        drawn |= zip(members, model.draw_batch(inputs, seeds=[seed + i for i in members], size=size))
    return [drawn[place] for place in range(len(samples))]


def evenly(items: Sequence, limit: int) -> list:
    """At most `limit` items at even distances: the same for every model."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i * len(items) / limit)] for i in range(limit)]


def _judged(source: str, sample: Sample, turn: int, answer: str) -> Item:
    asked = sample.turns[turn]
    slices = (f"modality={sample.modality}", f"answer_type={asked.kind}", f"question={asked.question}")
    return Item(f"vqa/{source}", f"{sample.id}/{turn}", float(exact_match(answer, asked.answer)), answer, asked.answer, slices)


def _judged_sources(reader: ReleaseReader, enough: int = 200) -> set[str]:
    """Sources of real pictures where they hold enough of them, else the phantoms: drawings are judged by their own kind."""
    sources = {e.source for e in reader.index}
    real = sources - {PHANTOMS}
    return real if len(_of(reader, "train", real)) >= enough else sources


def _of(reader: ReleaseReader, split: str, sources: set[str]) -> list[int]:
    """Positions of a split's generation samples of these sources."""
    return [i for i in reader.select(split, "generation") if reader.index[i].source in sources]


def _probe(reader: ReleaseReader, sources: set[str], params: EvaluationParams, seed: int) -> Probe:
    def labelled(split: str, limit: int) -> list[tuple[Image, str]]:
        return [(s.images[0].open(), s.modality) for s in map(reader.load, evenly(_of(reader, split, sources), limit))]

    return fit(labelled("train", 1500), labelled("test", 400), params.probe_min_images, seed)


def _by_modality(reader: ReleaseReader, positions: list[int], limit: int) -> list[int]:
    """An equal share of the budget for each modality."""
    groups: dict[str, list[int]] = defaultdict(list)
    for position in positions:
        groups[reader.index[position].modality].append(position)
    return [p for _, group in sorted(groups.items()) for p in evenly(group, max(1, limit // len(groups)))]
