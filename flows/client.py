"""The endpoint as its users see it: the ordinary `openai` client."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NotAnswered(RuntimeError):
    """The endpoint refused a request or did not come to its end; says why in the endpoint's words."""


@dataclass(frozen=True)
class Reply:
    """An answer and the model version that gave it."""

    text: str
    model: str


def connect():
    """An `openai` client of the local endpoint.

    Raises:
        ConnectionError: nothing answers there, or there is no key to it.
    """
    import httpx
    from openai import OpenAI

    from infra.settings import get_settings

    settings = get_settings()
    try:
        httpx.get(f"{settings.serve_url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError:
        raise ConnectionError(f"no model is served at {settings.serve_url}; `unimed deploy` serves the champion") from None
    key = settings.api_key.get_secret_value()
    if not (key and key.isascii()):
        raise ConnectionError(f"there is no key to {settings.serve_url}: UNIMED_API_KEY is not set, or not of plain letters; `unimed up` makes one")
    return OpenAI(base_url=f"{settings.serve_url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(image: bytes, question: str, model: str = "unimedvl") -> Reply:
    """A question about a picture.

    Raises:
        ConnectionError: nothing answers there.
        NotAnswered: the endpoint refuses or fails.
    """
    return ask_with(connect(), image, question, model)


def ask_with(openai, image: bytes, question: str, model: str = "unimedvl") -> Reply:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    with _in_its_words():
        answer = openai.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], max_tokens=24)
        return Reply(answer.choices[0].message.content, answer.model)


def draw(prompt: str, seed: int = 0, model: str = "unimedvl") -> bytes:
    """A PNG drawn from a prompt; raises as `ask` does."""
    return draw_with(connect(), prompt, seed, model)


def draw_with(openai, prompt: str, seed: int = 0, model: str = "unimedvl") -> bytes:
    with _in_its_words():
        made = openai.images.generate(model=model, prompt=prompt, extra_body={"seed": seed})
        return base64.b64decode(made.data[0].b64_json)


@contextmanager
def _in_its_words() -> Iterator[None]:
    from openai import APIError

    try:
        yield
    except APIError as error:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        raise NotAnswered(f"the endpoint says: {said or error.message}") from None
    except (AttributeError, IndexError, TypeError, ValueError):
        # Another program may have the port; what it says is anything.
        raise NotAnswered("what answers is no endpoint of OpenAI's API; `unimed status` tells what runs where") from None
