"""One request from its first byte to its row in the log, and the answers made of it."""

import io
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fastapi import Request
from ray.serve.exceptions import BackPressureError

from monitoring import features
from ray_jobs.serve import errors
from ray_jobs.serve.errors import ApiError
from ray_jobs.serve.schema import Parts
from ray_jobs.serve.telemetry import Telemetry


class Call:
    """One request from its first byte to its row in the log. As a context it turns failures into answers' errors."""

    def __init__(self, telemetry: Telemetry, route: str, request: Request):
        self.telemetry, self.route = telemetry, route
        self.id = request.headers.get("x-request-id") or f"req-{uuid.uuid4().hex}"
        self.begun, self.at = time.perf_counter(), datetime.now(UTC)
        self.arm: dict = {"arm": "", "version": ""}
        self.prompt, self.images, self.image_size = "", 0, None
        self.texts: list[str] = []
        self.logprobs: list[float] = []
        self.finish_reason, self.usage, self.embedding = "length", {"prompt_tokens": 0, "completion_tokens": 0}, None
        self.ttft_ms: float | None = None
        self.streaming = False

    @property
    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.id, "x-model-version": self.arm["version"]}

    async def __aenter__(self) -> "Call":
        return self

    async def __aexit__(self, kind, error, trace) -> None:
        refusal = _as_refusal(error) if error else None
        if not self.streaming:
            self.finish(refusal.status if refusal else 200, refusal.code if refusal else None)
        if refusal:
            raise refusal from (None if refusal.status < 500 else error)

    def route_to(self, arm: dict, parts: Parts) -> None:
        self.arm = arm
        self.prompt = "\n".join(part for part in parts if isinstance(part, str))
        pictures = [part for part in parts if isinstance(part, bytes)]
        self.images, self.image_size = len(pictures), _size(pictures[0]) if pictures else None

    def receive(self, chunk: dict) -> None:
        """Keep a chunk of the answer.

        Raises:
            ApiError: 400, the model's context does not hold the prompt.
        """
        if "refusal" in chunk:
            raise ApiError(400, chunk["refusal"], "context_length_exceeded", "messages")
        if "usage" in chunk:
            self.usage, self.embedding = chunk["usage"], chunk["embedding"]
            return
        self.ttft_ms = self.ttft_ms or (time.perf_counter() - self.begun) * 1000
        self.texts.append(chunk["text"])
        self.logprobs.append(chunk["logprob"])
        self.finish_reason = chunk["finish_reason"] or self.finish_reason

    def finish(self, status: int, error_code: str | None = None) -> None:
        """Keep what is told of the request; called exactly once."""
        seconds = time.perf_counter() - self.begun
        self.telemetry.add(
            features.row(
                request_id=self.id,
                time=self.at,
                route=self.route,
                model_version=self.arm["version"],
                arm=self.arm["arm"],
                status=status,
                error_code=error_code,
                latency_ms=seconds * 1000,
                ttft_ms=self.ttft_ms,
                prompt=self.prompt,
                answer="".join(self.texts),
                logprobs=self.logprobs,
                embedding=self.embedding,
                image_size=self.image_size,
                images=self.images,
                prompt_tokens=self.usage["prompt_tokens"],
            )
        )


def _as_refusal(error: BaseException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BackPressureError):
        return ApiError(503, "the endpoint is at its limit; try again shortly", "overloaded")
    if isinstance(error, TimeoutError):
        return ApiError(408, "the request took too long", "timeout")
    # Whatever went wrong may carry the caller's data: only its kind leaves the process.
    return ApiError(500, f"internal error ({type(error).__name__})", "internal_error")


def _size(data: bytes) -> tuple[int, int]:
    from PIL import Image

    return Image.open(io.BytesIO(data)).size


def _usage(call: Call) -> dict:
    return {**call.usage, "total_tokens": sum(call.usage.values())}


def completion(call: Call) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": "".join(call.texts)}, "finish_reason": call.finish_reason, "logprobs": None}
    return {"id": f"chatcmpl-{call.id}", "object": "chat.completion", "created": int(time.time()), "model": call.arm["version"], "choices": [choice], "usage": _usage(call)}


async def sse(call: Call, first: str, events: AsyncIterator[str], include_usage: bool) -> AsyncIterator[str]:
    """OpenAI's server-sent events; a failure half-way is told in the stream, where the status has gone out already."""
    head = {"id": f"chatcmpl-{call.id}", "object": "chat.completion.chunk", "created": int(time.time()), "model": call.arm["version"]}

    def event(delta: dict, finish: str | None = None, **more) -> str:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

    status, code = 499, "client_closed"
    try:
        yield event({"role": "assistant", "content": first})
        async for text in events:
            if text:
                yield event({"content": text})
        yield event({}, call.finish_reason)
        if include_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(call)})}\n\n"
        yield "data: [DONE]\n\n"
        status, code = 200, None
    except Exception as error:
        refusal = _as_refusal(error)
        status, code = refusal.status, refusal.code
        yield f"data: {json.dumps(errors.body(refusal.status, refusal.message, refusal.code))}\n\n"
    finally:
        call.finish(status, code)
