"""Drift reports for people (Evidently's HTML) and for machines (JSON), kept on S3."""

from monitoring.drift import LABELS, DriftReport, tables
from monitoring.params import DriftParams


def html(window, reference, params: DriftParams) -> bytes:
    """Evidently's drift page on the columns the verdict rests on; it loads nothing from elsewhere."""
    import tempfile
    import warnings
    from pathlib import Path

    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    now, then = tables(window[window["embedding"].notna()], reference, params)
    definition = DataDefinition(numerical_columns=[c for c in now.columns if c not in LABELS], categorical_columns=list(LABELS))
    preset = DataDriftPreset(num_method="wasserstein", num_threshold=params.min_effect, cat_method="jensenshannon", cat_threshold=params.min_effect)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        current, past = (Dataset.from_pandas(frame, data_definition=definition) for frame in (now, then))
        page = Path(folder) / "drift.html"
        Report([preset]).run(current, past).save_html(str(page))
        return page.read_bytes()


def publish(report: DriftReport, page: bytes | None, store) -> dict:
    """Keep both on S3; returns {json_key, html_key}."""
    from infra.records import digest

    record = report.to_json()
    prefix = f"drift/{report.created_at[:10]}/{digest(record)[:12]}"
    keys = {"json_key": f"{prefix}.json", "html_key": f"{prefix}.html" if page else None}
    if page:
        store.put(keys["html_key"], page)
    store.put_json(keys["json_key"], record)
    return keys


def to_markdown(report: DriftReport) -> str:
    """A table for people."""
    head = f"# Drift: **{report.verdict}**\n\nmodel `{report.model_version}`, {report.window['rows']} requests against {report.window['reference_rows']} reference rows, "
    head += f"{report.score:.0%} of the embedding's components drifted\n\n| column | effect | needed | p | needed | drifted |\n| --- | --- | --- | --- | --- | --- |\n"
    return head + "".join(f"| {c.column} | {c.effect:.2f} | {c.min_effect:.2f} | {c.p_value:.1e} | {c.max_p:.1e} | {'yes' if c.drifted else 'no'} |\n" for c in report.columns)
