"""The endpoint's requests and its replica, without a cluster: what is taken, what is refused and how."""

import asyncio
import io
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from model.inference import Chunk
from ray_jobs.serve.call import Call
from ray_jobs.serve.errors import ApiError
from ray_jobs.serve.params import ServingParams
from ray_jobs.serve.replica import Predictor
from ray_jobs.serve.router import Router
from ray_jobs.serve.schema import ChatRequest, ImageRequest, parse
from ray_jobs.serve.stops import Stops

OPTIONS = {"max_new_tokens": 8, "temperature": 0.0, "seed": 0, "stop": []}


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """A replica as Serve would make it, its model random."""
    from model import UniMedVL
    from model.testing import make_tiny

    made = object.__new__(Predictor.func_or_class)
    made.model, made.turn = UniMedVL.from_pretrained(make_tiny(tmp_path_factory.mktemp("model"))), asyncio.Lock()
    return made


def chunks(replica, parts: list, **options) -> list[dict]:
    async def collect() -> list[dict]:
        return [chunk async for chunk in replica.chat(parts, OPTIONS | options)]

    return asyncio.run(collect())


def asked(**more) -> ChatRequest:
    return parse(ChatRequest, json.dumps({"model": "unimedvl", "messages": [{"role": "user", "content": "hi"}]} | more).encode())


def drawn(**more) -> ImageRequest:
    return parse(ImageRequest, json.dumps({"prompt": "CT image"} | more).encode())


@pytest.mark.parametrize("text, counted", [("chest x-ray " * 2000, True), ("chest x-ray " * 600_000, False)])
def test_a_prompt_the_network_cannot_hold_is_refused_before_it_is_read(replica, monkeypatch, text, counted):
    seen = []
    count = replica.model.count_tokens
    monkeypatch.setattr(replica.model, "count_tokens", lambda parts: seen.append(parts) or count(parts))
    monkeypatch.setattr(replica.model, "stream_chat", lambda *_, **__: pytest.fail("it was read"))
    (only,) = chunks(replica, [text])
    assert bool(seen) == counted
    call = object.__new__(Call)
    with pytest.raises(ApiError, match="4,096 tokens") as told:
        call.receive(only)
    assert (told.value.status, told.value.code, told.value.param) == (400, "context_length_exceeded", "messages")


def test_the_answer_needs_its_place_in_the_context_too(replica):
    words = "no" * 2000
    fits = 4096 - replica.model.count_tokens([words])
    assert "usage" in chunks(replica, [words], max_new_tokens=min(fits, 1))[-1]
    assert "refusal" in chunks(replica, [words], max_new_tokens=fits + 1)[-1]


def test_an_answer_tells_its_prompts_tokens(replica):
    told = chunks(replica, ["hi"])
    assert told[-1]["usage"] == {"prompt_tokens": replica.model.count_tokens(["hi"]), "completion_tokens": len(told) - 1}


def test_several_drawings_count_up_from_the_seed(replica):
    def draw(seed: int, count: int) -> list[bytes]:
        return asyncio.run(replica.draw(["CT"], {"seed": seed, "size": (16, 32), "steps": 2}, count))

    pictures = [Image.open(io.BytesIO(png)) for png in (*draw(5, 2), *draw(6, 1))]
    assert pictures[0].tobytes() != pictures[1].tobytes() == pictures[2].tobytes() and pictures[0].size == (16, 32)


@pytest.mark.parametrize("seed", [2**63, 2**64, 2**70, -(2**64)])
@pytest.mark.parametrize("ask", [asked, drawn])
def test_a_seed_no_generator_takes_is_refused(ask, seed):
    with pytest.raises(ApiError, match="seed"):
        ask(seed=seed)


def test_the_furthest_seeds_draw(replica):
    for seed in (-(2**63), 2**63 - 1):
        assert len(asyncio.run(replica.draw(["CT"], {"seed": drawn(seed=seed).seed, "size": (16, 16), "steps": 2}, 2))) == 2


@pytest.mark.parametrize("temperature", [1e-320, 1e-40])
def test_a_tiny_temperature_is_greedy(replica, temperature):
    answers = [[(c.get("text"), c.get("logprob")) for c in chunks(replica, ["hi"], temperature=t)] for t in (asked(temperature=temperature).temperature, 0.0)]
    assert answers[0] == answers[1] and asked(temperature=0.5).temperature == 0.5


def test_null_means_absent():
    fields = ("seed", "temperature", "n", "stream", "stream_options", "response_format", "stop", "tool_choice", "logprobs", "max_tokens")
    assert asked(**dict.fromkeys(fields)) == asked()
    assert drawn(**dict.fromkeys(("seed", "n", "size", "response_format", "model"))) == drawn()
    with pytest.raises(ApiError, match="model"):
        asked(model=None)


@pytest.mark.parametrize(
    "field, value",
    [("tool_choice", "required"), ("tool_choice", {"type": "function"}), ("response_format", {"type": "json_object"}), ("response_format", {"type": "json_schema"}), ("logprobs", True), ("n", 2), ("stop", list("abcde")), ("stop", [""])],
)
def test_what_cannot_be_done_is_refused(field, value):
    with pytest.raises(ApiError) as told:
        asked(**{field: value})
    assert told.value.status == 400 and told.value.param.startswith(field)


def test_what_changes_nothing_is_taken():
    assert asked(tools=[{"type": "function"}], tool_choice="auto", response_format={"type": "text"}, logprobs=False, metadata={"a": "b"}).stop == []


def test_an_answer_ends_before_its_stop(replica, monkeypatch):
    said = [Chunk("CT", -0.1, None), Chunk(" im", -0.2, None), Chunk("age.", -0.3, None), Chunk(" More", -0.4, "length")]
    monkeypatch.setattr(replica.model, "stream_chat", lambda parts, **options: iter(said))
    told = chunks(replica, ["hi"], stop=["ma", "."])
    assert [(c["text"], c["finish_reason"]) for c in told[:-1]] == [("CT", None), (" i", None), ("", "stop")]
    assert told[-1]["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(
    "pieces, stops, shown",
    [
        (["one\n", "\ntwo"], ["\n\n"], ["one", ""]),
        (["one\n", "two\n"], ["\n\n"], ["one", "\ntwo\n"]),
        (["abc"], ["c", "b"], ["a"]),
        (["a", "b"], [], ["a", "b"]),
    ],
)
def test_what_may_begin_a_stop_is_held_back(pieces, stops, shown):
    gate = Stops(stops)
    assert [gate.passed(piece, last=piece is pieces[-1])[0] for piece in pieces] == shown


@pytest.mark.parametrize("size", ["9" * 5000 + "x64", "17x33", "64", "64x64x64", "0x16", "80x64", "x", "-16x16"])
def test_a_size_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ApiError, match="size") as told:
        drawn(size=size).pixels(ServingParams())
    assert told.value.status == 400 and len(told.value.message) < 200


def test_sizes_that_can_be_drawn():
    assert [drawn(size=size).pixels(ServingParams()) for size in ("auto", "16x64")] == [None, (16, 64)]


def test_a_picture_in_no_base64_is_refused():
    request = asked(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,ключ"}}]}])
    with pytest.raises(ApiError, match="base64"):
        request.parts(ServingParams())


@pytest.mark.parametrize("key, header, taken", [(b"", "Bearer ", False), (b"", "Bearer", False), (b"k", "Bearer ", False), (b"k", "Bearer k", True)])
def test_without_a_key_nobody_is_let_in(key, header, taken):
    router, request = SimpleNamespace(key=key), SimpleNamespace(headers={"authorization": header})
    if taken:
        return Router.func_or_class.authorise(router, request)
    with pytest.raises(ApiError, match="API key"):
        Router.func_or_class.authorise(router, request)
