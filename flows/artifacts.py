"""What a person sees of a run in the Prefect UI: tables, curves, pictures, links."""

import io

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact

from infra.records import digest
from infra.settings import get_settings
from infra.store import corpus_store, log_store
from monitoring.drift import DriftReport
from monitoring.report import to_markdown
from ray_jobs.gate import GateDecision

COLOURS = {"ce": "#2563eb", "mse": "#ea580c", "vae": "#16a34a"}


def release(record: dict) -> None:
    """Counts by task and modality, what changed, and what was kept aside."""
    card = record["card"]
    lines = [f"# {record['tag']} ({record['how']})", "", f"{card['samples']} samples of {card['patients']} patients, {card['expectations']['held']} of {card['expectations']['of']} expectations hold.", ""]
    lines += ["| task | modality | train | val | test |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {task} | {modality} | {n.get('train', 0)} | {n.get('val', 0)} | {n.get('test', 0)} |" for task, found in card["counts"].items() for modality, n in found.items()]
    lines += ["", f"Changed since {record['parent'] or 'nothing'}: {record['changed'] or 'nothing'}", "", f"Kept aside: {card['reasons'] or 'nothing'}"]
    create_markdown_artifact("\n".join(lines), key="corpus-release", description=record["tag"])
    create_link_artifact(corpus_store().url(record["data_docs_key"]), key="data-docs", link_text="data docs", description=f"every expectation of {record['tag']}")


def stages(records: list[dict]) -> None:
    """A row a stage, and the loss curves."""
    lines = ["| stage | how | steps | ce | mse | validation |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        last = record["history"][-1] if record["history"] else {}
        shown = [f"{last[key]:.3f}" if key in last else "" for key in ("ce", "mse")]
        scores = ", ".join(f"{name} {score:.0%}" for name, score in record["scores"].items())
        lines.append(f"| {record['stage']} | {record['how']} | {record['steps']} | {shown[0]} | {shown[1]} | {scores} |")
    create_markdown_artifact("\n".join(lines), key="stages", description="curriculum stages")
    curves = loss_curves(records)
    key = f"curves/{digest([r['history'] for r in records])[:12]}.png"
    log_store().put(key, curves)
    create_image_artifact(image_url=log_store().url(key), key="loss-curves", description="cross-entropy (blue), velocity loss (orange), VAE (green)")


def evaluation(report: dict) -> None:
    """Scores with intervals beside the baseline, and the contact sheet."""
    baseline = {b["name"]: b["score"] for b in report["baseline"]}
    lines = [f"# {report['subject']} on {report['release']}", "", report["protocol"], "", "| benchmark | slice | score | 95 % interval | n | prior |", "| --- | --- | --- | --- | --- | --- |"]
    for b in report["benchmarks"]:
        prior = f"{baseline[b['name']]:.3f}" if b["name"] in baseline else ""
        lines.append(f"| **{b['name']}** | all | **{b['score']:.3f}** | {b['ci'][0]:.3f} to {b['ci'][1]:.3f} | {b['n']} | {prior} |")
        lines += [f"| | {s['name']} | {s['score']:.3f} | {s['ci'][0]:.3f} to {s['ci'][1]:.3f} | {s['n']} | |" for s in b["slices"]]
    probe = report["probe"]
    lines += ["", f"The probe that judges drawings is right on {probe['accuracy']:.1%} of {probe['held_out']} held-out pictures."]
    create_markdown_artifact("\n".join(lines), key="evaluation", description=report["subject"])
    create_image_artifact(image_url=log_store().url(report["contact_sheet_key"]), key="contact-sheet", description="real pictures beside drawings of the same prompt")


def gate(decision: GateDecision) -> None:
    create_markdown_artifact(decision.to_markdown(), key="gate", description=decision.verdict)
    create_link_artifact(f"{get_settings().serve_url}/health", key="endpoint", link_text="endpoint", description="the served model")


def drift(report: DriftReport, page_url: str | None) -> None:
    create_markdown_artifact(to_markdown(report), key="drift", description=report.verdict)
    if page_url:
        create_link_artifact(page_url, key="drift-page", link_text="Evidently report")


def loss_curves(records: list[dict], width: int = 900, height: int = 320) -> bytes:
    """All stages' losses one after the other on a log scale, as PNG."""
    from math import log10

    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(picture)
    total = sum(r["steps"] for r in records) or 1
    low, high, left, bottom = -2.5, 1.0, 50, height - 30

    def place(step: float, value: float) -> tuple[float, float]:
        share = (log10(max(value, 10**low)) - low) / (high - low)
        return left + step / total * (width - left - 10), bottom - share * (bottom - 20)

    for power in (-2, -1, 0, 1):
        y = place(0, 10.0**power)[1]
        pen.line([(left, y), (width - 10, y)], fill="#e5e7eb")
        pen.text((8, y - 6), f"{10.0**power:g}", fill="grey")
    done = 0
    for record in records:
        pen.line([(place(done, 1)[0], 20), (place(done, 1)[0], bottom)], fill="#d1d5db")
        pen.text((place(done, 1)[0] + 4, 4), record["stage"], fill="black")
        for name, colour in COLOURS.items():
            points = [place(done + point["step"], point[name]) for point in record["history"] if name in point]
            if len(points) > 1:
                pen.line(points, fill=colour, width=2)
        done += record["steps"]
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
