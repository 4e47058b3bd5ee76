"""A row of UniMedVL's training data, in whatever file it lies: what its pictures and messages mean.

Both inputs and outputs: an edit of the first input into the first output. An output alone, or an input with the task
"generation": a picture to draw. Inputs alone: questions about them. None: text.
"""

from itertools import pairwise
from pathlib import Path

from corpus.readers.fields import NotARecord, answer, kind, text, words
from corpus.readers.pictures import cells, find
from corpus.readers.source import Source
from corpus.readers.textfiles import parsed
from corpus.record import Record
from corpus.sample import Turn

FIELDS = ("main_task_type", "sub_task_type", "modality", "dataset", "input_img", "output_img", "message")
_DRAWING = ("generation", "t2i", "text-to-image")
# How a message's fields are called, and the two who speak: as published, human and gpt, and as chats are written since.
_WHO, _SAID = ("from", "role"), ("value", "content")
_ALSO_CALLED = {"user": "human", "assistant": "gpt"}
# Where a picture stands among the words.
_MARK = "<image>"


def record(row: dict, key: str, where: str, root: Path, source: Source, noted: dict) -> Record:
    """The record of a row with `FIELDS`, of which absent ones count as empty, and optionally caption, license, attribution, split, patient.

    Args:
        root: the folder that picture paths start from.
        noted: further labels.

    Raises:
        MALFORMED (corpus.readers.fields): the row is not one.
    """
    inputs, outputs = ([find(cell, root, source.max_pixels) for cell in cells(row.get(name))] for name in ("input_img", "output_img"))
    if not (inputs or outputs) and not _is_text(row):
        raise NotARecord("no picture, and it is no text-only row")
    turns, task = _turns(row.get("message")), (text(row.get("main_task_type")) or "").casefold()
    asked = turns[0].question if turns else None
    said = {name: told for name in ("dataset", "main_task_type", "sub_task_type") if (told := text(row.get(name)))}
    if outputs or (inputs and _draws(task, row.get("message"))):
        said |= {"response": turns[0].answer} if turns and turns[0].answer else {}
        drawn = asked or text(row.get("caption"))
        content = {"instruction": drawn, "target": outputs[0][1]} if inputs and outputs else {"caption": drawn}
        content["left_out"] = len(turns[1:])
        shown = inputs[:1] if inputs and outputs else (outputs or inputs)[:1]
        further = inputs[1:] + outputs[1:]
        said |= {"pictures_left_out": len(further)} if further else {}
    else:
        answered = tuple(t for t in turns if t.answer)
        content, shown = {"turns": answered, "caption": text(row.get("caption")), "left_out": len(turns) - len(answered)}, inputs
    first = (inputs or outputs or [(key, None)])[0][0]
    return Record(
        id=key,
        where=where,
        images=tuple(opener for _, opener in shown),
        patient=text(row.get("patient")) or first,
        labels=said | noted,
        **content,
        **source.known(**{name: text(row.get(name)) for name in ("modality", "license", "attribution", "split")}),
    )


def _is_text(row: dict) -> bool:
    """Whether a row without pictures is meant to have none."""
    task = (text(row.get("main_task_type")) or "text").casefold()
    return "text" in task and not any(word in task for word in _DRAWING) and _MARK not in str(row.get("message"))


def _draws(task: str, message: object) -> bool:
    """Whether an input alone is what is to be drawn. Of a report's "generation" it is the subject, which the human's words then point at."""
    if task in _DRAWING:
        return True
    return any(word in task for word in _DRAWING) and not any(who == "human" and _MARK in words(value) for who, value in _spoken(message))


def _spoken(message: object) -> list[tuple[str, object]]:
    said = parsed(message) if isinstance(message, str) else message or []
    if not (isinstance(said, list) and all(isinstance(m, dict) for m in said)):
        raise NotARecord("`message` is not a list of mappings")
    return [(_speaker(_either(m, _WHO)), _either(m, _SAID)) for m in said]


def _either(fields: dict, names: tuple[str, str]) -> object:
    """What stands under one of two names. Raises KeyError, of the published one."""
    return fields[names[1] if names[0] not in fields and names[1] in fields else names[0]]


def _speaker(name: object) -> str:
    called = words(name).strip().casefold()
    return _ALSO_CALLED.get(called, called)


def _turns(message: object) -> list[Turn]:
    """Pairs of a human's and the model's words, lines kept; a human's words without an answer have an empty one."""
    spoken = [(who, _words(value)) for who, value in _spoken(message)]
    pairs = pairwise([*spoken, ("human", "")])
    return [Turn(asked, reply if then == "gpt" else "", kind(reply)) for (who, asked), (then, reply) in pairs if who == "human" and asked]


def _words(value: object) -> str:
    said = words(value).replace(_MARK, " ").strip()
    return said if answer(said) else ""
