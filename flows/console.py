"""How the command line speaks: progress on stderr, results on stdout, one line an error, exit codes with a meaning."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from infra.proxies import past_proxies

DONE, FAILED, USAGE, REFUSED, NO_EVIDENCE, INTERRUPTED = 0, 1, 2, 3, 4, 130
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def progress(line: str) -> None:
    typer.echo(line, err=True)


def counter(what: str, every_s: float = 2.0) -> Callable[[int, int | None], None]:
    """Progress of a count, told every now and then with its rate and what is left."""
    begun = told = time.monotonic()

    def on_progress(seen: int, of: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < every_s:
            return
        told, rate = now, seen / (now - begun)
        progress(f"{seen:,} {what}, {rate:,.0f} a second" + (f", eta {(of - seen) / rate:.0f} s" if of else ""))

    return on_progress


def show(result: object, as_json: bool, human: Callable[[], str]) -> None:
    """The result, for programs or for people."""
    told = json.dumps(result, indent=1, default=str, ensure_ascii=False) if as_json else "\n".join(map(printable, human().split("\n")))
    typer.echo(told, file=sys.__stdout__)


def printable(text: str) -> str:
    """A line in which what would steer the terminal is written out: ids and names of files may hold anything."""
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def results_only() -> None:
    """From here on stdout is for results alone: a driver of Ray prints the cluster's warnings there, whatever it is told."""
    sys.stdout = sys.stderr


def needs_stack() -> None:
    """Refuse early, and tell libraries where things are."""
    from infra.settings import get_settings
    from infra.stack import Stack

    down = [service.name for service in Stack().status() if not service.running]
    if down:
        raise fail(f"{', '.join(down)} not running; start the stack with `unimed up`")
    get_settings().export()


def fail(message: str, code: int = FAILED) -> typer.Exit:
    typer.echo(f"unimed: {message}", err=True)
    return typer.Exit(code)


def place(given: str) -> Path:
    """Parser of a path: an empty one, as of a variable that a script did not fill in, would be the current folder."""
    if not given:
        raise typer.BadParameter("a path is not empty")
    return Path(given)


def file_to_write(path: Path | None) -> Path | None:
    """Callback of an option: refuse what cannot be written before anything is made for it."""
    if path and (path.is_dir() or not path.parent.is_dir()):
        raise typer.BadParameter(f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}")
    return path


def table(headers: list[str], rows: list[list[object]]) -> str:
    """A plain table with aligned columns."""
    text = [headers, *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(headers))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in text]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


class Verbs(TyperGroup):
    """All verbs; tells of an interruption, which would otherwise end in an exit code alone."""

    def invoke(self, ctx) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise fail("interrupted; running jobs go on, the same command attaches to them again", INTERRUPTED) from None


def run(app: typer.Typer) -> None:
    """Run the app; what users can mend is told in a line, without a trace."""
    os.environ.update(past_proxies())
    if sys.__stdout__:
        # What a terminal's encoding has no letter for is written out, as on stderr.
        sys.__stdout__.reconfigure(errors="backslashreplace")
    try:
        app()
    except Exception as error:
        if not _is_known(error):
            raise
        typer.echo(f"unimed: {_told(error)}", err=True)
        sys.exit(FAILED)


def _is_known(error: Exception) -> bool:
    """Errors of our own rooms carry their mend; those of files, folders and connections say what is wrong."""
    rooms = ("infra.", "corpus.", "model.", "monitoring.", "ray_jobs.", "flows.")
    return type(error).__module__.startswith(rooms) or isinstance(error, (OSError, LookupError))


def _told(error: Exception) -> str:
    # Ray's clients speak through requests, whose errors name sockets and no mend.
    if type(error).__module__.startswith("requests."):
        return f"a service does not answer any more ({type(error).__name__}); `unimed up` starts what is down, the same command goes on"
    return str(error)
