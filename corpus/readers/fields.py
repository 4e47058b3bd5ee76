"""Fields as published files have them: numbers for text, blanks, the word NULL, options by letter."""

import re

from corpus.readers.source import Source
from corpus.readers.textfiles import NotJson
from corpus.record import Rejection
from corpus.sample import Turn


class NotARecord(ValueError):
    """A row that is no record of its format; the message tells why, without quoting it."""


# What reading a row that is not as it should be raises.
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
# Between folders, on any system; how paths begin that start elsewhere than at the source; characters of one that is told.
_FOLDERS, _ELSEWHERE, _LONGEST = re.compile(r"[/\\:]"), re.compile(r"[/\\~]|\w+:"), 255
_MISSING = ("", "NULL", "NAN", "-")


def text(value: object) -> str | None:
    """Plain text of a field that may be a number, blank, or a word for nothing."""
    found = answer(value)
    return None if found and found.upper() == "NONE" else found


def answer(value: object) -> str | None:
    """As `text`, but "None" is a word: SLAKE's answer to "What diseases are in the picture?"."""
    if value is None:
        return None
    found = " ".join(words(value).split())
    # Characters that show nothing, such as blanks of no width, are no answer either.
    return found if found.upper() not in _MISSING and any(map(str.isprintable, found)) else None


def words(value: object) -> str:
    """A field as text, lines kept; a list of one thing is that thing, and 1.0 is 1: tables make that of whole numbers, where one is missing.

    Raises:
        NotARecord: it is several things, or a mapping.
    """
    if isinstance(value, str):
        return value
    value = single(value)
    if isinstance(value, (list, tuple, dict)):
        raise NotARecord("a list or mapping where a text belongs")
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def single(value: object) -> object:
    """What a list of one thing holds; an empty one holds nothing."""
    return (value[0] if value else None) if isinstance(value, (list, tuple)) and len(value) <= 1 else value


def language(named: object) -> str:
    """Of a tag such as en-US (BCP 47) its first part; English where none is named."""
    return (text(named) or "en").casefold().replace("_", "-").partition("-")[0]


def kind(answered: str, named: object = None) -> str:
    """OPEN or CLOSED, as named ("CLOSED ", "closed-ended" too); where neither is named, yes and no are CLOSED."""
    said = str(single(named)).strip().upper()
    closed = said.startswith("CLOSE") if said.startswith(("OPEN", "CLOSE")) else answered.strip(" .").casefold() in ("yes", "no")
    return "CLOSED" if closed else "OPEN"


def turn(question: object, given: object, named: object = None) -> Turn | None:
    """A question with its answer and the kind that is named for it, or None if either is missing."""
    asked, answered = text(question), answer(given)
    return Turn(asked, answered, kind(answered, named)) if asked and answered else None


def choice(question: object, options: dict[str, object], given: object, by_letter: bool) -> tuple[Turn | None, dict]:
    """A multiple-choice question as VLMEvalKit puts it, answered with the option's text; and what scoring needs.

    Args:
        options: by letter; blank ones are left out.
        given: the letter of an option, or its text.
        by_letter: which of the two the format has: an option may be called "A" and not stand at A.

    Raises:
        NotARecord: the answer is none of the options.
    """
    offered = {letter: said for letter in sorted(options) if (said := answer(options[letter]))}
    answered = answer(given)
    letter, asked = _chosen(offered, answered, by_letter) if answered else None, text(question)
    if offered and answered and letter is None:
        raise NotARecord("the answer is none of the options")
    lines = [f"Question: {asked}", "Options:", *(f"{letter}. {said}" for letter, said in offered.items()), "Please select the correct answer from the options above."]
    facts = {"question": asked, "options": list(offered.values()), "answer_letter": letter}
    return (Turn("\n".join(lines), offered[letter], "CLOSED") if asked and letter else None), facts


def _chosen(offered: dict[str, str], answered: str, by_letter: bool) -> str | None:
    """The letter of the option that is meant. Letter case may be all that tells two options apart: genotypes Aa and aa."""
    same = next((letter for letter, said in offered.items() if said == answered), None)
    alike = next((letter for letter, said in offered.items() if said.casefold() == answered.casefold()), None)
    named = answered if answered in offered else None
    small = answered.upper() if answered.upper() in offered else None
    return (named or same or alike or small) if by_letter else (same or alike or named)


def kept(row: dict, *names: str) -> dict:
    """Fields of a row that it has, for its labels."""
    return {name: row[name] for name in names if row.get(name) is not None}


def damaged(*texts: object) -> dict:
    """A label that tells of bytes that were not UTF-8."""
    count = sum(str(said).count("\ufffd") for said in texts)
    return {"undecodable_characters": count} if count else {}


def malformed(source: Source, where: str, error: Exception) -> Rejection:
    """A row that is not a record of its format."""
    told = f"no field {error}" if isinstance(error, KeyError) else str(error) if isinstance(error, (NotARecord, NotJson)) else type(error).__name__
    return Rejection(source.name, where, "malformed-record", f"not a record: {told}")


def shown(relative: object) -> str:
    """A picture's path for `where`: one that leaves the folder may tell about the machine, so only its name is kept."""
    path = str(relative)
    *folders, name = _FOLDERS.split(path)
    return (name if _ELSEWHERE.match(path) or ".." in folders else path)[:_LONGEST]
