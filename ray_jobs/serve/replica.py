"""One immutable model version as a Ray Serve application."""

import asyncio
import io
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ray import serve

from ray_jobs.serve.params import ServingParams
from ray_jobs.serve.stops import Stops

if TYPE_CHECKING:
    from model import UniMedVL

PREDICTOR = "Predictor"
# More than words ever take: a text this long for its tokens is no text.
CHARACTERS_A_TOKEN = 16


def app_name(version: str) -> str:
    """The Serve application of a model version."""
    return f"model-{version}"


@serve.deployment(name=PREDICTOR)
class Predictor:
    """Holds a model in memory; hashes are verified before it answers anything."""

    def __init__(self, version: str, threads: int):
        import torch

        from infra.registry import ModelRegistry
        from model import UniMedVL

        torch.set_num_threads(threads)
        self.version = version
        self.model = UniMedVL.from_pretrained(ModelRegistry().fetch(version))
        # One forward pass at a time: requests take turns by the token, health checks are never blocked.
        self.turn = asyncio.Lock()
        self.model.chat(["warm up"], max_new_tokens=1)

    async def chat(self, parts: list[str | bytes], options: dict) -> AsyncIterator[dict]:
        """Chunks {text, logprob, finish_reason}, then one {usage, embedding}; only {refusal} where the network cannot hold it."""
        inputs = _pictures(parts)
        # Not in turn: a long text is counted while others are answered.
        prompt_tokens, refusal = await asyncio.to_thread(fitting, self.model, inputs, options["max_new_tokens"])
        if refusal:
            # As data: an exception would leave its trace, and Ray's, in the log for what is the caller's own doing.
            yield {"refusal": refusal}
            return
        stops, tokens = Stops(options.pop("stop")), 0
        stream = self.model.stream_chat(inputs, **options)
        while True:
            async with self.turn:
                chunk = await asyncio.to_thread(next, stream, None)
            if chunk is None:
                break
            tokens += 1
            text, stopped = stops.passed(chunk.text, last=chunk.finish_reason is not None)
            yield {"text": text, "logprob": chunk.logprob, "finish_reason": "stop" if stopped else chunk.finish_reason}
            if stopped:
                break
        async with self.turn:
            embedding = await asyncio.to_thread(self._embedding, inputs)
        yield {"usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}, "embedding": embedding}

    async def draw(self, parts: list[str | bytes], options: dict, count: int) -> list[bytes]:
        """PNG files of `count` images, seeds counting up from the given one."""
        first = options.pop("seed")
        seeds = [first + i for i in range(count)]
        async with self.turn:
            images = await asyncio.to_thread(self.model.draw_batch, [_pictures(parts)] * count, seeds=seeds, **options)
        return [_png(image) for image in images]

    def _embedding(self, inputs: list) -> list[float] | None:
        images = [part for part in inputs if not isinstance(part, str)]
        return self.model.embed(images[:1])[0].tolist() if images else None


def fitting(model: "UniMedVL", inputs: list, room: int) -> tuple[int, str | None]:
    """Tokens of a prompt, and why it and `room` tokens of answer exceed the network's positions (None: they do not)."""
    limit = model.config.llm.max_position_embeddings
    # What no tokenizer could make fit is not given to one.
    least = sum(2 + len(part) // CHARACTERS_A_TOKEN for part in inputs if isinstance(part, str))
    tokens = least if least + room > limit else model.count_tokens(inputs)
    if tokens + room > limit:
        return tokens, f"the model's context is {limit:,} tokens; the prompt takes at least {tokens:,} and the answer up to {room}; shorten the messages"
    return tokens, None


def build(args: dict) -> serve.Application:
    """Application builder named by the Serve configuration: {version, serving}."""
    limits = ServingParams(**args["serving"])
    return Predictor.options(
        num_replicas=limits.replicas,
        max_ongoing_requests=limits.max_ongoing_requests,
        max_queued_requests=limits.max_queued_requests,
        graceful_shutdown_timeout_s=limits.timeout_s,
        ray_actor_options={"num_cpus": 0.5},
    ).bind(args["version"], limits.threads_per_replica)


def _pictures(parts: list[str | bytes]) -> list:
    from PIL import Image

    return [part if isinstance(part, str) else Image.open(io.BytesIO(part)) for part in parts]


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
