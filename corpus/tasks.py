"""How each of UniMedVL's four tasks is laid out as parts (views and roles of the released loaders)."""

from collections.abc import Iterable

from corpus.sample import Part, Turn


def understanding(turns: Iterable[Turn], images: int = 1) -> tuple[Part, ...]:
    """The images, seen by the ViT, then question/answer turns."""
    return (*(Part("image", "context", image=i, views=("vit",)) for i in range(images)), *_dialogue(turns))


def generation(prompt: str) -> tuple[Part, ...]:
    """A prompt, then image 0 as the picture to draw."""
    return (Part("text", "context", text=prompt), Part("image", "target", image=0, views=("vae",)))


def interleaved(instruction: str) -> tuple[Part, ...]:
    """Image 0 seen by both encoders, an instruction, then image 1 as the picture to draw."""
    return (
        Part("image", "context", image=0, views=("vae", "vit")),
        Part("text", "context", text=instruction),
        Part("image", "target", image=1, views=("vae",)),
    )


def text(turns: Iterable[Turn]) -> tuple[Part, ...]:
    """Question/answer turns without a picture."""
    return tuple(_dialogue(turns))


def _dialogue(turns: Iterable[Turn]) -> Iterable[Part]:
    for turn in turns:
        yield Part("text", "context", text=turn.question)
        yield Part("text", "target", text=turn.answer, label=turn.kind)
