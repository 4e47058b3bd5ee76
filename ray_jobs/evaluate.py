"""Evaluate a model on a release's test split: `python -m ray_jobs.evaluate --inputs evaluation.json`.

Inputs: `subject` (model version), `release` (corpus tag), `evaluation` (section of params.yaml), `seed`.
The report names score, interval and size of every benchmark and slice; per-item results lie beside it.
"""

import io
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from textwrap import wrap

import numpy as np

from corpus.reader import ReleaseReader
from infra.jobs import entrypoint
from infra.records import digest, utc_now
from infra.registry import ModelRegistry
from infra.store import log_store
from model import UniMedVL
from model.answer_metrics import mean_interval, wilson_interval
from monitoring import features
from monitoring.request_log import to_parquet
from ray_jobs import benchmarks
from ray_jobs.benchmarks import Drawings, Item
from ray_jobs.evaluate_params import EvaluationParams
from ray_jobs.releases import open_release


def evaluate(inputs: dict) -> dict:
    """Score a model version; returns {report_key, report}."""
    params, seed, version = EvaluationParams(**inputs["evaluation"]), inputs["seed"], inputs["subject"]
    registry, reader = ModelRegistry(), open_release(inputs["release"])
    model = UniMedVL.from_pretrained(registry.fetch(version))
    drawn, items = Drawings(), []
    for name, found in (
        ("questions", benchmarks.vqa(model, reader, params)),
        ("drawings", benchmarks.drawing(model, reader, params, seed, drawn)),
        ("image pairs", benchmarks.pairs(model, reader, params, seed)),
    ):
        begun = time.perf_counter()
        items += list(found)
        print(f"{name}: {len(items)} items scored, {time.perf_counter() - begun:.1f} s", flush=True)
    latency = _latency(model, reader)
    _reference_window(registry, version, model, reader, params)
    prefix = f"evaluations/{version}/{digest(inputs)[:12]}"
    store = log_store()
    store.put(f"{prefix}/items.parquet", _items_parquet(items))
    store.put(f"{prefix}/contact_sheet.png", contact_sheet(drawn))
    report = {
        "subject": version,
        "release": inputs["release"],
        "created_at": utc_now(),
        "protocol": "greedy decoding; exact match after lower-casing and stripping punctuation and articles",
        "benchmarks": summarise(items, params.min_slice),
        "baseline": summarise(benchmarks.prior(reader, params), params.min_slice),
        "probe": {"accuracy": drawn.probe.accuracy, "held_out": drawn.probe.held_out, "modalities": list(drawn.probe.modalities)},
        "latency": latency,
        "items_key": f"{prefix}/items.parquet",
        "contact_sheet_key": f"{prefix}/contact_sheet.png",
    }
    store.put_json(f"{prefix}/report.json", report)
    registry.add_record(version, "evaluation", {"report_key": f"{prefix}/report.json", "release": inputs["release"]})
    return {"report_key": f"{prefix}/report.json", "report": report}


def quick_scores(model: UniMedVL, asked: benchmarks.Questions) -> dict[str, float]:
    """Accuracy by source on a few questions: how a stage is doing."""
    usual = EvaluationParams()
    return {entry["name"]: entry["score"] for entry in summarise(benchmarks.answered(model, asked, usual), usual.min_slice)}


def summarise(items: Iterable[Item], min_slice: int) -> list[dict]:
    """Benchmarks with score, 95 % interval, size, and the slices large enough to say something."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.benchmark].append(item)
    return [_benchmark(name, found, min_slice) for name, found in sorted(groups.items())]


def _benchmark(name: str, items: list[Item], min_slice: int) -> dict:
    slices: dict[str, list[float]] = defaultdict(list)
    for item in items:
        for label in item.slices:
            slices[label].append(item.score)
    metric = name.rsplit("-", 1)[-1] if name.startswith("interleaved/") else "accuracy"
    shown = [{"name": label, **_score(metric, scores)} for label, scores in sorted(slices.items()) if len(scores) >= min_slice]
    return {"name": name, "metric": metric, "higher_is_better": True, **_score(metric, [i.score for i in items]), "slices": shown}


def _score(metric: str, scores: list[float]) -> dict:
    interval = wilson_interval(round(sum(scores)), len(scores)) if metric == "accuracy" else mean_interval(np.array(scores))
    return {"score": float(np.mean(scores)), "ci": list(interval), "n": len(scores)}


def _latency(model: UniMedVL, reader: ReleaseReader, answers: int = 20) -> dict:
    """Milliseconds of single answers."""
    asked = [pair for found in benchmarks.questions(reader, "test", answers).values() for pair in found][:answers]
    took = []
    for sample, turn in asked:
        begun = time.perf_counter()
        model.chat([sample.images[0].open(), sample.turns[turn].question], max_new_tokens=12)
        took.append((time.perf_counter() - begun) * 1000)
    return {"p50_ms": float(np.percentile(took, 50)), "p95_ms": float(np.percentile(took, 95)), "n": len(took)}


def _reference_window(registry: ModelRegistry, version: str, model: UniMedVL, reader: ReleaseReader, params: EvaluationParams) -> None:
    """How the request log would look if users sent the release's own held-out pictures."""
    asked = [pair for split in ("val", "test") for found in benchmarks.questions(reader, split, 10**9).values() for pair in found]
    chosen = benchmarks.evenly(asked, params.reference_rows)
    rows = []
    for start in range(0, len(chosen), params.batch):
        chunk = chosen[start : start + params.batch]
        pictures = [sample.images[0].open() for sample, _ in chunk]
        questions = [sample.turns[turn].question for sample, turn in chunk]
        answers = model.chat_batch(list(map(list, zip(pictures, questions))), max_new_tokens=params.max_new_tokens)
        for picture, question, answer, embedding in zip(pictures, questions, answers, model.embed(pictures)):
            known = {"request_id": f"reference-{len(rows)}", "time": datetime.now(UTC), "route": "chat", "model_version": version, "arm": "reference"}
            seen = {"prompt": question, "answer": answer.text, "logprobs": answer.logprobs, "embedding": embedding.tolist()}
            rows.append(features.row(**known, status=200, latency_ms=0.0, images=1, image_size=picture.size, prompt_tokens=answer.prompt_tokens, **seen))
    registry.store.put(f"versions/{version}/attachments/reference.parquet", to_parquet(rows))


def _items_parquet(items: list[Item]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    columns = {name: [getattr(item, name) for item in items] for name in ("benchmark", "id", "score", "answer", "truth")}
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def contact_sheet(drawn: Drawings, columns: int = 6, side: int = 96) -> bytes:
    """Drawings beside real pictures of the same prompt, labelled, as PNG."""
    from PIL import Image, ImageDraw

    shown = benchmarks.evenly(drawn.rows, 24)
    rows = -(-len(shown) // columns)
    width, height = 2 * side + 8, side + 56
    sheet = Image.new("RGB", (columns * width, max(rows, 1) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (prompt, real, made, judged) in enumerate(shown):
        left, top = number % columns * width, number // columns * height
        for place, picture in ((0, real), (side, made)):
            sheet.paste(picture.convert("RGB").resize((side, side)), (left + place, top))
        pen.text((left + 2, top + side + 2), "held out", fill="grey")
        pen.text((left + side + 2, top + side + 2), f"drawn: {judged}", fill="black")
        for line, words in enumerate(wrap(prompt, 32)[:2]):
            pen.text((left + 2, top + side + 16 + 13 * line), words, fill="black")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    entrypoint(evaluate)
