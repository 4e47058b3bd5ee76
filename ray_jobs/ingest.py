"""Corpus work by hand: `python -m ray_jobs.ingest release` builds the release that dvc.yaml names.

The flow runs the same command in its own clone of the repository.
"""

import argparse
import hmac
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from corpus import intake, release, taken_in, vocabulary
from corpus.readers import formats
from corpus.readers.source import Source
from corpus.record import Record, Rejection
from infra.settings import get_settings
from infra.store import corpus_store
from ray_jobs import alignment
from ray_jobs.examination import on_cluster
from ray_jobs.params import load_params

OnProgress = Callable[[int, int | None], None]
COUNT_S = 5.0
LONGEST_NAME = 100


def build_release(sources: Path, out: Path, params_file: Path, on_step: Callable[[str], None] = print) -> dict:
    """Build the release of `sources` into `out`; returns its card."""
    params, store = load_params(params_file), corpus_store()
    scorer = alignment.scorer(params.corpus.quality.alignment.scorer)
    decisions = release.read_decisions(sources, store)
    return release.build(release.read_sources(sources), out, params.corpus, store, salt(), on_step, release.last_release(sources), decisions, scorer)


class BadSourceName(ValueError):
    """No source can have this name."""


class UnknownTerm(ValueError):
    """What is said of a source is no split, modality or licence that the corpus takes."""


class EmptySource(ValueError):
    """Nothing was found where a source had records."""


def add_source(
    path: Path, name: str | None = None, format: str = formats.AUTO, workers: int = 1, on_progress: OnProgress | None = None, replace: bool = False, empty: bool = False, **said
) -> dict:
    """Take a file or folder in; returns the source's record.

    Args:
        name: by default the folder's, in lower case.
        format: see `corpus.readers.FORMATS`.
        workers: cores of the cluster that examine records; 0 for all, 1 for this process alone.
        on_progress: called with the records seen, and their number where it could be counted soon.
        replace: put it in the stead of a source of this name that lies elsewhere.
        empty: it may be that nothing is found, where the source had records.
        said: what the person who adds it says of it, by the names of `Source`.

    Raises:
        BadSourceName, UnknownTerm: see `source_name`, `_require_known`.
        SourceElsewhere: a source of this name lies elsewhere.
        EmptySource: nothing was found where there were records, as of a folder that is not mounted.
        UnknownFormat, FileNotFoundError, MissingColumn: see `corpus.readers.formats.read`.
    """
    settings = get_settings()
    params = load_params(settings.params_file)
    _require_known(said, params.corpus.quality.licenses)
    folder = path.resolve()
    place = hmac.digest(salt(), os.fsencode(folder), "sha256").hex()[:20]
    source = Source(folder, source_name(name, folder), params.corpus.quality.languages, params.corpus.quality.max_pixels, salt=salt(), **said)
    if not replace:
        taken_in.require_place(source.name, place, corpus_store())
    tell = _telling(on_progress, _count(source, format)) if on_progress else lambda seen: None
    examine = intake.in_this_process(params.corpus, salt()) if workers == 1 else on_cluster(params.corpus, salt(), workers)
    records = formats.read(source, format)
    return intake.add(source.name, records if empty else _not_vanished(source.name, records), params.corpus, corpus_store(), salt(), examine, tell, place)


def _require_known(said: dict, licenses: tuple[str, ...]) -> None:
    """Raises UnknownTerm: nothing that goes by it could be kept, and what the source holds by now would be gone."""
    terms = {
        "split": (vocabulary.split, ("train", "val", "test")),
        "modality": (vocabulary.modality, vocabulary.MODALITIES),
        "license": (lambda name: vocabulary.license_id(name, licenses), licenses),
    }
    for option, (find, known) in terms.items():
        # An empty word is one that a script did not fill in.
        if said.get(option) is not None and not find(said[option]):
            raise UnknownTerm(f"--{option} {said[option]!r} is none of {', '.join(known)}" + (" (corpus.quality.licenses in params)" if option == "license" else ""))


def _not_vanished(name: str, records: Iterable[Record | Rejection]) -> Iterator[Record | Rejection]:
    """The same, once it is known that there is a record among them, or that the source had none. Raises EmptySource."""
    records, before = iter(records), []
    for item in records:
        before.append(item)
        if isinstance(item, Record):
            return chain(before, records)
    if any(source["name"] == name and source["records"]["kept"] for source in taken_in.sources(corpus_store())):
        raise EmptySource(f"no record was found for source {name!r}, which has some: is the folder there, and its disk? `--empty` takes it as it is, `unimed data remove {name}` takes the source out")
    return iter(before)


def source_name(given: str | None, path: Path) -> str:
    """The name of a source: the one given, or that of its folder.

    Raises:
        BadSourceName: it is a built-in source's, or holds more than letters, digits, `.`, `_` and `-`.
    """
    name = (path.name if path.is_dir() else path.parent.name) if given is None else given
    name = name.lower().replace(" ", "-")
    if given is None:
        name = re.sub(r"[^\w.]+", "-", name).strip("-.")[:LONGEST_NAME] or "source"
    if len(name) > LONGEST_NAME or not re.fullmatch(r"\w[\w.-]*", name):
        raise BadSourceName(f"{name!r} is no name for a source: up to {LONGEST_NAME} letters, digits, `.`, `_` and `-`, and a letter or digit first")
    if name in vocabulary.BUILT_IN:
        raise BadSourceName(f"{name!r} is a built-in source; give this one another name (--name)")
    return name


def _telling(on_progress: OnProgress, count: int | None) -> Callable[[int], None]:
    return lambda seen: on_progress(seen, count)


def _count(source: Source, format: str) -> int | None:
    """The records of a source, unless counting them takes long."""
    end = time.monotonic() + COUNT_S
    count = 0
    for count, _ in enumerate(formats.read(source, format), start=1):
        if time.monotonic() > end:
            return None
    return count


def salt() -> bytes:
    """The key of patient hashes.

    Raises:
        ValueError: none is set.
    """
    value = get_settings().patient_salt.get_secret_value()
    if not value:
        raise ValueError("UNIMED_PATIENT_SALT is not set: patients cannot be told apart without telling who they are; `unimed up` makes one")
    return value.encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    adding = verbs.add_parser("add", help="take a source in")
    adding.add_argument("path", type=Path)
    adding.add_argument("--name")
    adding.add_argument("--format", default=formats.AUTO)
    releasing = verbs.add_parser("release", help="build data/release from sources.yaml")
    releasing.add_argument("--sources", type=Path, default=Path("sources.yaml"))
    releasing.add_argument("--out", type=Path, default=Path("data/release"))
    releasing.add_argument("--params", type=Path, default=Path("params.yaml"))
    arguments = parser.parse_args()
    if arguments.verb == "add":
        print(add_source(arguments.path, arguments.name, arguments.format))
    else:
        try:
            card = build_release(arguments.sources, arguments.out, arguments.params)
        except ValueError as error:
            raise SystemExit(f"release refused: {error}") from None
        print(f"{card['samples']} samples of {card['patients']} patients in {arguments.out}")


if __name__ == "__main__":
    main()
