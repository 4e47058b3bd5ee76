"""The endpoint as its users see it: the ordinary `openai` client."""

import base64
from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """An answer and the model version that gave it."""

    text: str
    model: str


def connect():
    """An `openai` client of the local endpoint.

    Raises:
        ConnectionError: nothing answers there.
    """
    import httpx
    from openai import OpenAI

    from infra.settings import get_settings

    settings = get_settings()
    try:
        httpx.get(f"{settings.serve_url}/health", timeout=5).raise_for_status()
    except httpx.HTTPError:
        raise ConnectionError(f"no model is served at {settings.serve_url}; `unimed deploy` serves the champion") from None
    return OpenAI(base_url=f"{settings.serve_url}/v1", api_key=settings.api_key.get_secret_value(), max_retries=0, timeout=60)


def ask(image: bytes, question: str, model: str = "unimedvl") -> Reply:
    """A question about a picture."""
    return ask_with(connect(), image, question, model)


def ask_with(openai, image: bytes, question: str, model: str = "unimedvl") -> Reply:
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    answer = openai.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], max_tokens=24)
    return Reply(answer.choices[0].message.content, answer.model)


def draw(prompt: str, seed: int = 0, model: str = "unimedvl") -> bytes:
    """A PNG drawn from a prompt."""
    made = connect().images.generate(model=model, prompt=prompt, extra_body={"seed": seed})
    return base64.b64decode(made.data[0].b64_json)
