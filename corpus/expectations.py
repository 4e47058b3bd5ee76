"""What every release must satisfy, as Great Expectations suites over columns and aggregates; pictures are not looked at."""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from corpus import aggregates
from corpus.params import CorpusParams
from corpus.sample import SPLITS, TASKS
from corpus.vocabulary import MODALITIES, NO_PICTURE

# Columns of what must hold whatever is enforced: licences of the allow-list, and no patient in two splits.
SAFETY = ("license", "not_licensed", "splits_of_patient", "leaking")


class ReleaseRejected(ValueError):
    """The release breaks an expectation that is enforced; the message names it with examples."""


@dataclass(frozen=True)
class _Suite:
    """A table, the columns that name a row of it, and what is expected."""

    name: str
    frame: object
    key: tuple[str, ...]
    expectations: list


def validate(kept: pa.Table, params: CorpusParams, before: dict[str, dict] | None = None) -> dict:
    """Run the suites over an index.

    Args:
        before: `by_source` of the last release's card; without one, no balance is compared.

    Returns:
        {success, results: [{suite, expectation, description, column, success, enforced, failing, examples}], tables: {suite: rows}, by_source},
        the tables being the aggregates. Examples name samples by id and groups by their key.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    # Without documentation sites, as each would leave a temporary folder behind.
    config = DataContextConfig(store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False), progress_bars={"globally": False})
    source = gx.get_context(mode="ephemeral", project_config=config).data_sources.add_pandas("release")
    batches = source.add_dataframe_asset("table").add_batch_definition_whole_dataframe("all")
    frame = aggregates.columns(kept)
    by_source = aggregates.by_source(frame)
    suites = [
        _Suite("samples", frame, ("row",), _of_samples(params, gx.expectations)),
        _Suite("groups", aggregates.groups(frame, params), ("source", "modality"), _of_groups(params, gx.expectations)),
        _Suite("presence", aggregates.presence(frame, params), ("of", "value"), _of_presence(gx.expectations)),
        _Suite("balance", aggregates.balance(by_source, before or {}, params), ("source", "of", "value"), _of_balance(params, gx.expectations)),
    ]
    results = [result for suite in suites if len(suite.frame) for result in _run(suite, batches, gx.ExpectationSuite)]
    for result in results:
        result["examples"] = _named(result, kept)
        result["enforced"] = params.expectations.enforced == "all" or result["column"] in SAFETY
    tables = {suite.name: suite.frame.astype(object).where(suite.frame.notna(), None).to_dict("records") for suite in suites[1:]}
    return {"success": all(r["success"] for r in results), "results": results, "tables": tables, "by_source": by_source}


def require(report: dict) -> None:
    """Raises ReleaseRejected unless every expectation that is enforced held."""
    broken = [r for r in report["results"] if r["enforced"] and not r["success"]]
    if broken:
        told = "; ".join(f"{r['suite']}, {r['column']}: {r['description']}: {r['failing']} failing, e.g. {', '.join(r['examples'][:3])}" for r in broken)
        raise ReleaseRejected(f"the release breaks {len(broken)} of {len(report['results'])} expectations: {told}")


def _of_samples(params: CorpusParams, e) -> list:
    return [e.ExpectColumnValuesToNotBeNull(column=column, description="is never missing") for column in aggregates.REQUIRED] + [
        e.ExpectColumnValuesToBeUnique(column="id", description="occurs once"),
        _one_of(e, "task", TASKS),
        _one_of(e, "modality", (*MODALITIES, NO_PICTURE)),
        _one_of(e, "split", SPLITS),
        _one_of(e, "license", params.quality.licenses),
        _between(e, "side", params.quality.min_side, params.quality.max_side),
        _between(e, "text_length", 1, 64 * params.quality.max_text),
        e.ExpectColumnValuesToBeInSet(column="splits_of_patient", value_set=[1], description="a patient is in one split alone"),
    ]


def _of_groups(params: CorpusParams, e) -> list:
    nothing = {"missing": "nothing is missing", "not_licensed": "every licence is on the allow-list", "leaking": "no sample of a patient in two splits"}
    return [e.ExpectColumnValuesToBeInSet(column=column, value_set=[0], description=told) for column, told in nothing.items()] + [
        _between(e, "smallest_side", params.quality.min_side, None),
        _between(e, "largest_side", None, params.quality.max_side),
        _between(e, "shortest_text", 1, None),
        _between(e, "longest_text", None, 64 * params.quality.max_text),
    ]


def _of_presence(e) -> list:
    return [e.ExpectColumnPairValuesAToBeGreaterThanB(column_A="samples", column_B="at_least", or_equal=True, description="each is there often enough")]


def _of_balance(params: CorpusParams, e) -> list:
    most = params.expectations.max_shift
    told = f"a share of a source moves by {most:g} at most from release to release (corpus.expectations.max_shift)"
    return [e.ExpectColumnValuesToBeBetween(column="shift", max_value=most, description=told)]


def _one_of(e, column: str, values: tuple[str, ...]):
    return e.ExpectColumnValuesToBeInSet(column=column, value_set=list(values), description=f"is one of {', '.join(values)}")


def _between(e, column: str, least: float | None, most: float | None):
    limits = [f"at least {least:,}" if least is not None else "", f"at most {most:,}" if most is not None else ""]
    return e.ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most, description=f"is {' and '.join(filter(None, limits))}")


def _run(suite: _Suite, batches, make: Callable) -> list[dict]:
    def outcome(form: dict):
        return batches.get_batch({"dataframe": suite.frame}).validate(make(name=suite.name, expectations=suite.expectations), result_format=form)

    found = outcome({"result_format": "BOOLEAN_ONLY"})
    if not found.success:  # only then is it worth finding the rows
        found = outcome({"result_format": "COMPLETE", "unexpected_index_column_names": list(suite.key)})
    return [_summary(suite, result) for result in found.results]


def _summary(suite: _Suite, result) -> dict:
    config, found = result.expectation_config, result.result
    rows = (found.get("unexpected_index_list") or [])[:5]
    return {
        "suite": suite.name,
        "expectation": config.type,
        "description": config.description,
        "column": config.kwargs.get("column") or config.kwargs["column_A"],
        "success": bool(result.success),
        "failing": found.get("unexpected_count", 0),
        "examples": [[row[name] for name in suite.key] for row in rows],
    }


def _named(result: dict, kept: pa.Table) -> list[str]:
    """Examples as people know them: samples by id, groups by their key."""
    if result["suite"] == "samples":
        return [str(kept["id"][int(row)].as_py()) for row, in result["examples"]]
    return [" / ".join(map(str, key)) for key in result["examples"]]
