"""One immutable model version as a Ray Serve application."""

import asyncio
import io
from collections.abc import AsyncIterator

from ray import serve

from ray_jobs.serve.params import ServingParams

PREDICTOR = "Predictor"


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
        """Chunks {text, logprob, finish_reason}, then one {usage, embedding}."""
        inputs = _pictures(parts)
        stream = self.model.stream_chat(inputs, **options)
        tokens = 0
        while True:
            async with self.turn:
                chunk = await asyncio.to_thread(next, stream, None)
            if chunk is None:
                break
            tokens += 1
            yield {"text": chunk.text, "logprob": chunk.logprob, "finish_reason": chunk.finish_reason}
        async with self.turn:
            summary = await asyncio.to_thread(self._summary, inputs)
        yield {"usage": {"prompt_tokens": summary["prompt_tokens"], "completion_tokens": tokens}, "embedding": summary["embedding"]}

    async def draw(self, parts: list[str | bytes], options: dict, count: int) -> list[bytes]:
        """PNG files of `count` images, seeds counting up from the given one."""
        seeds = [options.pop("seed") + i for i in range(count)]
        async with self.turn:
            images = await asyncio.to_thread(self.model.draw_batch, [_pictures(parts)] * count, seeds=seeds, **options)
        return [_png(image) for image in images]

    def _summary(self, inputs: list) -> dict:
        images = [part for part in inputs if not isinstance(part, str)]
        embedding = self.model.embed(images[:1])[0].tolist() if images else None
        return {"prompt_tokens": self.model.count_tokens(inputs), "embedding": embedding}


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
