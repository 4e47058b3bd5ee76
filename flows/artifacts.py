"""What a person sees of a run in the Prefect UI: tables, curves, pictures, links."""

from itertools import accumulate

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact

from flows.curves import Line, plot
from infra.records import digest
from infra.settings import get_settings
from infra.store import corpus_store, log_store
from monitoring.drift import DriftReport
from monitoring.report import to_markdown
from ray_jobs.gate import GateDecision


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
        named = record["stage"] + (f" ({record['origin']})" if "origin" in record else "")
        lines.append(f"| {named} | {record['how']} | {record['steps']} | {shown[0]} | {shown[1]} | {scores} |")
    create_markdown_artifact("\n".join(lines), key="stages", description="curriculum stages")
    curves = loss_curves(records)
    key = f"curves/{digest([r['history'] for r in records])[:12]}.png"
    log_store().put(key, curves)
    create_image_artifact(image_url=log_store().url(key), key="loss-curves", description="all stages, one after the other")


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


def loss_curves(records: list[dict]) -> bytes:
    """What the stages told of themselves, one after the other, as PNG."""
    ends = list(accumulate(record["steps"] for record in records))
    return plot([Line(record["stage"], record["history"], end - record["steps"]) for record, end in zip(records, ends)])
