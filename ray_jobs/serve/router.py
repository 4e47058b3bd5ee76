"""The front of the endpoint: OpenAI's routes, the key, the split of traffic and the request log."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve

from infra.settings import get_settings
from ray_jobs.serve import errors
from ray_jobs.serve.call import Call, completion, sse
from ray_jobs.serve.errors import ApiError
from ray_jobs.serve.params import ServingParams
from ray_jobs.serve.replica import PREDICTOR, app_name
from ray_jobs.serve.schema import MODEL_ALIAS, ChatRequest, ImageRequest, parse
from ray_jobs.serve.telemetry import Telemetry

app = FastAPI(title="UniMedVL", docs_url=None, redoc_url=None)
errors.install(app)


@serve.deployment(name="Router", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
@serve.ingress(app)
class Router:
    """Routes are switched by `reconfigure`, without a restart; handles of old versions drain by themselves."""

    def __init__(self, serving: dict):
        self.limits = ServingParams(**serving)
        self.key = get_settings().api_key.get_secret_value().encode()
        self.telemetry = Telemetry()
        self.arms: list[dict] = []

    def reconfigure(self, config: dict) -> None:
        """`config`: {"arms": [{"arm", "version", "weight"}, …]}, champion first."""
        self.handles = {arm["version"]: serve.get_deployment_handle(PREDICTOR, app_name(arm["version"])) for arm in config["arms"]}
        self.arms = config["arms"]

    # -- routes -----------------------------------------------------------------------------------

    @app.get("/health")
    async def health(self) -> dict:
        return {"status": "ok", "arms": self.arms}

    @app.get("/metrics")
    async def prometheus(self) -> Response:
        body, media_type = self.telemetry.exposition()
        return Response(body, media_type=media_type)

    @app.get("/v1/models")
    async def models(self, request: Request) -> dict:
        self.authorise(request)
        names = [MODEL_ALIAS, *(arm["version"] for arm in self.arms)]
        return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "unimed"} for name in names]}

    @app.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        self.authorise(request)
        async with Call(self.telemetry, "chat", request) as call:
            asked: ChatRequest = parse(ChatRequest, await self._body(request))
            parts = asked.parts(self.limits)
            call.route_to(self._arm(asked.model, asked.user or call.id), parts)
            options = {"max_new_tokens": asked.token_limit(self.limits), "temperature": asked.temperature, "seed": asked.seed, "stop": asked.stop}
            events = self._events(call, self.handles[call.arm["version"]].options(stream=True).chat.remote(parts, options))
            first = await anext(events)
            if asked.stream:
                call.streaming = True
                return StreamingResponse(sse(call, first, events, asked.stream_options.include_usage), media_type="text/event-stream", headers=call.headers)
            async for _ in events:
                pass
            return JSONResponse(completion(call), headers=call.headers)

    @app.post("/v1/images/generations")
    async def images(self, request: Request) -> Response:
        self.authorise(request)
        async with Call(self.telemetry, "images.generations", request) as call:
            asked: ImageRequest = parse(ImageRequest, await self._body(request))
            if asked.n > self.limits.max_images:
                raise ApiError(400, f"at most {self.limits.max_images} images a request", "invalid_value", "n")
            size = asked.pixels(self.limits)
            call.route_to(self._arm(asked.model, asked.user or call.id), [asked.prompt])
            work = self.handles[call.arm["version"]].draw.remote([asked.prompt], {"seed": asked.seed, "size": size}, asked.n)
            drawn = await asyncio.wait_for(work, self.limits.timeout_s)
            data = [{"b64_json": base64.b64encode(png).decode()} for png in drawn]
            return JSONResponse({"created": int(time.time()), "data": data}, headers=call.headers)

    # -- what every route needs ----------------------------------------------------------------------

    def authorise(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        # Without a key of its own the endpoint knows nobody; an empty one would equal an empty token.
        if scheme.lower() != "bearer" or not self.key or not hmac.compare_digest(token.encode(), self.key):
            raise ApiError(401, "Incorrect API key provided; send it as `Authorization: Bearer …`", "invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        """The body, refused as soon as it is known to be too large."""
        too_large = ApiError(413, f"the body exceeds {self.limits.max_body_bytes:,} bytes", "request_too_large")
        if int(request.headers.get("content-length") or 0) > self.limits.max_body_bytes:
            raise too_large
        chunks, size = [], 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > self.limits.max_body_bytes:
                raise too_large
            chunks.append(chunk)
        return b"".join(chunks)

    def _arm(self, model: str, key: str) -> dict:
        """The arm for a request: by version where one is named, else by a stable hash of the caller."""
        if model != MODEL_ALIAS:
            for arm in self.arms:
                if arm["version"] == model:
                    return arm
            raise ApiError(404, f"The model `{model}` does not exist; `GET /v1/models` lists those served", "model_not_found", "model")
        if not self.arms:
            raise ApiError(503, "no model is deployed yet", "no_model")
        point = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64 * sum(arm["weight"] for arm in self.arms)
        for arm in self.arms:
            point -= arm["weight"]
            if point < 0:
                return arm
        return self.arms[0]

    async def _events(self, call: Call, stream) -> AsyncIterator[str]:
        """Texts of an answer as they come; the rest of each chunk is kept with the call."""
        end = time.monotonic() + self.limits.timeout_s
        iterator = aiter(stream)
        while True:
            try:
                chunk = await asyncio.wait_for(anext(iterator), max(end - time.monotonic(), 0.001))
            except StopAsyncIteration:
                return
            call.receive(chunk)
            if "text" in chunk:
                yield chunk["text"]


def build(args: dict) -> serve.Application:
    """Application builder named by the Serve configuration: {serving}."""
    return Router.bind(args["serving"])
