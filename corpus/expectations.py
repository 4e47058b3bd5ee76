"""What every release must satisfy, as a Great Expectations suite over columns; pictures are not looked at."""

from collections.abc import Iterable

from corpus.params import CorpusParams
from corpus.sample import SPLITS, TASKS
from corpus.vocabulary import MODALITIES


class ReleaseRejected(ValueError):
    """The release breaks an expectation; the message names it with example ids."""


COLUMNS = ("id", "task", "modality", "source", "license", "split", "patient", "side", "text_length")


def table(kept):
    """The columns of an index that are judged, as a DataFrame with a row a sample."""
    frame = kept.select(list(COLUMNS)).to_pandas()
    splits = frame.groupby("patient", observed=True)["split"].nunique()
    return frame.assign(splits_of_patient=frame["patient"].map(splits))


def validate(frame, params: CorpusParams) -> dict:
    """Run the suite; returns {success, results:[{expectation, column, success, failing, examples}]}."""
    import logging

    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = context.data_sources.add_pandas("release").add_dataframe_asset("samples").add_batch_definition_whole_dataframe("all")
    suite = gx.ExpectationSuite(name="release", expectations=_expectations(params, gx.expectations))
    form = {"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]}
    outcome = batch.get_batch({"dataframe": frame}).validate(suite, result_format=form)
    balance = [_at_least(frame, "modality", params.expectations.modalities, params.expectations.min_per_modality)]
    balance += [_at_least(frame, "split", SPLITS, params.expectations.min_per_split)]
    results = [_summary(result) for result in outcome.results] + balance
    return {"success": all(r["success"] for r in results), "results": results}


def require(report: dict) -> None:
    """Raises ReleaseRejected unless every expectation held."""
    broken = [r for r in report["results"] if not r["success"]]
    if broken:
        told = "; ".join(f"{r['expectation']} on {r['column']}: {r['failing']} failing, e.g. {', '.join(r['examples'][:3])}" for r in broken)
        raise ReleaseRejected(f"the release breaks {len(broken)} of {len(report['results'])} expectations: {told}")


def _expectations(params: CorpusParams, e) -> list:
    columns = ("id", "task", "modality", "source", "license", "split", "patient")
    suite = [e.ExpectColumnValuesToNotBeNull(column=column) for column in columns]
    return suite + [
        e.ExpectColumnValuesToBeUnique(column="id"),
        e.ExpectColumnValuesToBeInSet(column="task", value_set=list(TASKS)),
        e.ExpectColumnValuesToBeInSet(column="modality", value_set=list(MODALITIES)),
        e.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        e.ExpectColumnValuesToBeInSet(column="license", value_set=list(params.quality.licenses)),
        e.ExpectColumnValuesToBeBetween(column="side", min_value=params.quality.min_side, max_value=params.quality.max_side),
        e.ExpectColumnValuesToBeBetween(column="text_length", min_value=1, max_value=64 * params.quality.max_text),
        e.ExpectColumnValuesToBeInSet(column="splits_of_patient", value_set=[1]),
    ]


def _summary(result) -> dict:
    config, found = result.expectation_config, result.result
    examples = [str(entry.get("id", entry)) for entry in (found.get("unexpected_index_list") or [])[:5]]
    failing = found.get("unexpected_count", 0)
    return {"expectation": config.type, "column": config.kwargs.get("column"), "success": bool(result.success), "failing": failing, "examples": examples}


def _at_least(frame, column: str, values: Iterable[str], least: int) -> dict:
    """Balance: every value occurs often enough (Great Expectations has no per-value minimum)."""
    counts = frame[column].value_counts()
    short = [f"{value} ({int(counts.get(value, 0))} < {least})" for value in values if counts.get(value, 0) < least]
    return {"expectation": "every_value_at_least", "column": column, "success": not short, "failing": len(short), "examples": short}
