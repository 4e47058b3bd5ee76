"""A release's validation as one page for people: every expectation with its outcome, and the aggregates it was judged on.

The page stands alone: nothing is loaded from elsewhere, and it knows no patient.
"""

from html import escape

TITLES = {
    "samples": ("Samples", "Every sample's columns."),
    "groups": ("By source and modality", "What the samples of a source and modality add up to."),
    "presence": ("Presence", "Modalities and splits that have to be there."),
    "balance": ("Balance", "Shares of each source's samples, beside those of the last release."),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 70rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem } p { margin: .2rem 0 .6rem; color: #4b5563 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; font-size: .92em }
th, td { text-align: left; vertical-align: top; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e5e7eb }
th { font-weight: 600; color: #374151; border-bottom-color: #9ca3af } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.held, .broken { font-weight: 600; white-space: nowrap } .held { color: #15803d } .broken { color: #b91c1c } tr.broken-row { background: #fef2f2 }
code { font: .92em ui-monospace, monospace }
@media (prefers-color-scheme: dark) {
 body { background: #111827; color: #e5e7eb } p, th { color: #9ca3af } th, td { border-color: #374151 }
 .held { color: #4ade80 } .broken { color: #f87171 } tr.broken-row { background: #3b1a1a } }
"""


def page(title: str, report: dict) -> str:
    """The report of `corpus.expectations.validate` as HTML."""
    held = sum(result["success"] for result in report["results"])
    verdict = f"<span class={'held' if report['success'] else 'broken'}>{held} of {len(report['results'])} expectations hold</span>"
    suites = list(dict.fromkeys(result["suite"] for result in report["results"]))
    first = "" if "balance" in suites else "<p>No source of the last release has enough samples in both: no balance was compared.</p>"
    body = "\n".join(_suite(name, report) for name in suites)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}: data docs</title><style>{STYLE}</style></head>
<body><h1>{escape(title)}</h1><p>{verdict}</p>{first}
{body}
</body></html>
"""


def _suite(name: str, report: dict) -> str:
    title, told = TITLES[name]
    results = [_outcome(result) for result in report["results"] if result["suite"] == name]
    table = _table(["", "column", "expectation", "not as expected"], results, broken=[not r["success"] for r in report["results"] if r["suite"] == name])
    rows = report["tables"].get(name, [])
    beneath = _table([column.replace("_", " ") for column in rows[0]], [[_cell(value) for value in row.values()] for row in rows]) if rows else ""
    return f"<h2>{title}</h2><p>{told}</p>{table}{beneath}"


def _outcome(result: dict) -> list[str]:
    mark = "<span class=held>held</span>" if result["success"] else "<span class=broken>broken</span>"
    examples = ", ".join(f"<code>{escape(example)}</code>" for example in result["examples"])
    failing = f"{result['failing']:,}, e.g. {examples}" if result["failing"] else ""
    return [mark, escape(result["column"].replace("_", " ")), escape(result["description"]), failing]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float):
        return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"
    return escape(str(value))


def _table(head: list[str], rows: list[list[str]], broken: list[bool] = ()) -> str:
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    marks = [" class=number" if number else "" for number in numeric]
    lines = ["".join(f"<td{mark}>{cell}</td>" for mark, cell in zip(marks, row)) for row in rows]
    flags = [*broken, *[False] * (len(rows) - len(broken))]
    body = "\n".join(f"<tr{' class=broken-row' if flag else ''}>{line}</tr>" for flag, line in zip(flags, lines))
    return f"<div class=scroll><table><tr>{''.join(f'<th{mark}>{escape(name)}</th>' for mark, name in zip(marks, head))}</tr>\n{body}</table></div>"


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "", 1).replace("e-", "").isdigit()
