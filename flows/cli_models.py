"""`unimed models`: versions in the registry."""

from typing import Annotated

import typer

from flows import console
from flows.console import Json

app = typer.Typer(help="Model versions.", no_args_is_help=True)


@app.command("list")
def models_list(json: Json = False) -> None:
    """All versions, with their aliases."""
    console.needs_stack()
    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    aliases, versions = registry.aliases(), registry.list()
    named = {v.id: ", ".join(sorted(a for a, target in aliases.items() if target == v.id)) for v in versions}
    rows = [[v.id, named[v.id], v.created_at, v.lineage.get("release", ""), v.lineage.get("reason", "")] for v in versions]
    result = {"aliases": aliases, "versions": [vars(v) for v in versions]}
    console.show(result, json, lambda: console.table(["version", "aliases", "created", "release", "reason"], rows))


@app.command("show")
def models_show(version: Annotated[str, typer.Argument(help="Model version or alias.")] = "champion", json: Json = False) -> None:
    """A version's manifest, lineage, evaluation and gate decisions."""
    console.needs_stack()
    import json as js

    from infra.registry import ModelRegistry

    registry = ModelRegistry()
    chosen = registry.resolve(version)
    result = vars(registry.get(chosen)) | {"records": registry.records(chosen)}
    console.show(result, json, lambda: js.dumps(result, indent=1))
