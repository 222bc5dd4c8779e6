"""The story of an answer: text out of tokens, its end, its limits, and that no session outlives it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.access.admission import Admission
from coordinator.access.callers import anonymous
from coordinator.generation import Chat, FinishEvent, GenerationRequest, TextEvent, admit, generate
from coordinator.stop_text import StopText
from coordinator.token_pipeline import PipelineLost
from mesh.errors import RequestRefused
from mesh.model.sampling import SamplingParams
from tests.support.fake_pipeline import FakePipeline, FakeRoom, refused
from tests.support.served_model import EOS, served_model

PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
PROMPT_TOKENS = (
    len(PROMPT.encode()) - len("<|im_start|>") * 2 - len("<|im_end|>") + 3
)  # a special is one token


def request(
    *, max_tokens: int | None = 100, stop: tuple[str, ...] = (), content: str = "hi", seed: int = 7
) -> GenerationRequest:
    return GenerationRequest(
        request_id="req-1",
        prompt=Chat([{"role": "user", "content": content}]),
        sampling=SamplingParams(temperature=0.5, top_p=0.9, seed=seed),
        max_tokens=max_tokens,
        stop=stop,
    )


async def answer(pipeline: FakePipeline, wanted: GenerationRequest | None = None) -> tuple[str, FinishEvent]:
    events = [event async for event in generate(served_model(pipeline), wanted or request(), anonymous())]
    *texts, finish = events
    assert isinstance(finish, FinishEvent)
    assert all(isinstance(event, TextEvent) and event.text for event in texts)
    return "".join(event.text for event in texts if isinstance(event, TextEvent)), finish


# -- text and its end


async def test_answer_is_the_text_of_the_tokens_until_eos() -> None:
    pipeline = FakePipeline([*b"hello", EOS, *b"never"])
    text, finish = await answer(pipeline)
    assert (text, finish.reason) == ("hello", "stop")
    assert pipeline.tokens_given == 6  # nothing is asked for after the end
    assert pipeline.open_sessions == 0


async def test_answer_without_an_end_has_the_length_that_was_asked_for() -> None:
    text, finish = await answer(FakePipeline(b"abcdefgh"), request(max_tokens=3))
    assert (text, finish.reason) == ("abc", "length")
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (PROMPT_TOKENS, 3)


async def test_eos_as_the_very_last_token_is_a_stop() -> None:
    _, finish = await answer(FakePipeline([*b"ab", EOS]), request(max_tokens=3))
    assert finish.reason == "stop"
    assert finish.usage.completion_tokens == 3


async def test_special_tokens_leave_their_names_only_if_they_are_asked_for() -> None:
    script = [*b"a", 257, *b"\xc3", 257, *b"b", EOS]
    hidden, _ = await answer(FakePipeline(script))
    assert "<|im_start|>" not in hidden
    shown, _ = await answer(FakePipeline(script), dataclasses.replace(request(), shown=frozenset({257})))
    assert shown == "a<|im_start|>\ufffd<|im_start|>b"  # in their place, behind what was held back


async def test_before_the_least_number_of_tokens_no_stop_string_counts() -> None:
    wanted = dataclasses.replace(request(stop=("b",)), min_tokens=4)
    text, finish = await answer(FakePipeline(b"ababab"), wanted)
    assert (text, finish.stop_string, finish.usage.completion_tokens) == ("aba", "b", 4)


async def test_more_tokens_than_the_context_leaves_are_cut_where_the_client_wants_that() -> None:
    wanted = dataclasses.replace(request(max_tokens=100_000), is_shortened=True)
    _, finish = await answer(FakePipeline(b"x" * 1000), wanted)
    assert finish.usage.prompt_tokens + finish.usage.completion_tokens == 512
    assert (finish.reason, finish.fills_context) == ("length", True)


async def test_a_code_point_is_never_split() -> None:
    pipeline = FakePipeline("é😀x".encode())
    events = [event async for event in generate(served_model(pipeline), request(), anonymous())]
    assert [event.text for event in events if isinstance(event, TextEvent)] == ["é", "😀", "x"]


async def test_stop_string_across_tokens_is_cut_and_leaves_the_session() -> None:
    pipeline = FakePipeline(b"one STOP two")
    text, finish = await answer(pipeline, request(stop=("STOP",)))
    assert (text, finish.reason) == ("one ", "stop")
    assert pipeline.tokens_given == len("one STOP")
    assert pipeline.open_sessions == 0


async def test_what_only_began_like_a_stop_string_is_shown() -> None:
    text, finish = await answer(FakePipeline([*b"one STO", EOS]), request(stop=("STOP",)))
    assert (text, finish.reason) == ("one STO", "stop")


# -- stop strings, whatever the cuts

ALPHABET = st.text("abé", max_size=30)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3)


def before_stop(text: str, stops: list[str]) -> str:
    """The reference: read one character at a time, end where the first stop string is complete."""
    for end in range(len(text) + 1):
        if ends := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ends))]
    return text


@given(st.lists(ALPHABET, max_size=8), STOPS)
def test_stop_strings_end_the_text_wherever_the_pieces_are_cut(pieces: list[str], stops: list[str]) -> None:
    filtered = StopText(stops)
    shown = [filtered.push(piece) for piece in pieces]
    shown.append(filtered.flush())
    whole = "".join(pieces)
    assert "".join(shown) == before_stop(whole, stops)
    assert filtered.is_stopped == any(stop in whole for stop in stops)
    assert not any(stop in "".join(shown) for stop in stops)


@given(st.text("abé", min_size=1, max_size=20), STOPS)
def test_nothing_is_held_back_longer_than_it_must_be(text: str, stops: list[str]) -> None:
    filtered = StopText(stops)
    shown = filtered.push(text)
    if not filtered.is_stopped:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(ALPHABET, STOPS)
async def test_an_answer_equals_its_text_before_the_stop_string(text: str, stops: list[str]) -> None:
    shown, _ = await answer(FakePipeline([*text.encode(), EOS]), request(stop=tuple(stops)))
    assert shown == before_stop(text, stops)


# -- limits


async def test_without_max_tokens_the_context_is_the_limit() -> None:
    pipeline = FakePipeline(b"x" * 1000)
    _, finish = await answer(pipeline, request(max_tokens=None))
    assert pipeline.requests[0].max_new_tokens == 512 - PROMPT_TOKENS
    assert finish.usage.prompt_tokens + finish.usage.completion_tokens == 512


async def test_the_session_gets_the_prompt_and_the_sampling_that_were_asked_for() -> None:
    pipeline = FakePipeline([EOS])
    await answer(pipeline, request(max_tokens=9))
    [asked] = pipeline.requests
    assert asked.prompt_ids == (257, *b"user\nhi", 258, *b"\n", 257, *b"assistant\n")
    assert (asked.request_id, asked.max_new_tokens) == ("req-1", 9)
    assert asked.sampling == SamplingParams(temperature=0.5, top_p=0.9, seed=7)


async def test_a_prompt_beyond_the_context_is_refused_before_a_session_is_opened() -> None:
    pipeline = FakePipeline(b"x")
    with pytest.raises(RequestRefused) as refusal:
        await answer(pipeline, request(content="x" * 600))
    assert str(refusal.value) == (
        "This model's maximum context length is 512 tokens. However, "
        f"your messages resulted in {PROMPT_TOKENS + 598} tokens. (context_length_exceeded)"
    )
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (
        400,
        "context_length_exceeded",
        "messages",
    )
    assert pipeline.requests == []


@pytest.mark.parametrize(
    ("content", "max_tokens", "param"),
    [("x" * 80, 1, "messages"), ("hi", 64 - PROMPT_TOKENS + 1, "max_tokens")],
)
async def test_more_than_a_session_may_hold_is_refused_before_anything_is_reserved(
    content: str, max_tokens: int, param: str
) -> None:
    pipeline, room = FakePipeline(b"x"), FakeRoom()
    model = dataclasses.replace(served_model(pipeline, admission=Admission(room)), max_session_tokens=64)
    wanted = request(content=content, max_tokens=max_tokens)
    with pytest.raises(RequestRefused, match="maximum context length is 64 tokens") as refusal:
        [_ async for _ in generate(model, wanted, anonymous())]
    assert (refusal.value.status, refusal.value.param) == (400, param)
    assert pipeline.requests == []
    assert room.most_reserved == 0


async def test_an_answer_of_no_given_length_gets_what_a_session_may_hold() -> None:
    pipeline = FakePipeline(b"x" * 600)
    model = dataclasses.replace(served_model(pipeline), max_session_tokens=64)
    *_, finish = [event async for event in generate(model, request(max_tokens=None), anonymous())]
    assert isinstance(finish, FinishEvent)
    assert finish.usage.prompt_tokens + finish.usage.completion_tokens == 64


def test_a_session_never_holds_more_than_the_model_was_trained_for() -> None:
    model = dataclasses.replace(served_model(FakePipeline(b"")), max_session_tokens=1 << 20)
    assert model.context_length == 512


def test_max_tokens_beyond_the_context_is_refused_in_words_that_clients_recognise() -> None:
    with pytest.raises(RequestRefused) as refusal:
        admit(prompt_tokens=100, max_tokens=29, context_length=128)
    assert "This model's maximum context length is 128 tokens" in str(refusal.value)
    assert "context_length_exceeded" in str(refusal.value)
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "max_tokens")


@given(st.integers(1, 300), st.none() | st.integers(1, 300), st.integers(1, 300))
def test_what_is_admitted_fits_the_context_and_what_fits_is_admitted(
    prompt: int, max_tokens: int | None, context: int
) -> None:
    fits = prompt + (max_tokens or 1) <= context
    try:
        admitted = admit(prompt, max_tokens, context)
    except RequestRefused:
        assert not fits
    else:
        assert fits
        assert admitted == (max_tokens or context - prompt)


# -- no session outlives its answer


async def test_closing_in_the_middle_leaves_the_session_at_once() -> None:
    pipeline = FakePipeline(b"abc")
    async with aclosing(generate(served_model(pipeline), request(), anonymous())) as events:
        await anext(events)
        assert pipeline.open_sessions == 1
    assert pipeline.open_sessions == 0


async def test_cancelling_before_the_first_token_leaves_the_session() -> None:
    pipeline = FakePipeline(b"abc", park_at=0)
    waiting = asyncio.ensure_future(answer(pipeline))
    await pipeline.parked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pipeline.open_sessions == 0


async def test_a_lost_pipeline_is_told_and_its_session_left() -> None:
    pipeline = FakePipeline(b"abc", failure=PipelineLost("node-b is gone"), fail_at=2)
    with pytest.raises(PipelineLost, match="node-b is gone"):
        await answer(pipeline)
    assert pipeline.open_sessions == 0


async def test_a_refused_session_is_the_callers_to_see() -> None:
    refusal = RequestRefused("layers 2:4 are missing", status=503, code="mesh_incomplete", retry_after=5)
    with pytest.raises(RequestRefused) as seen:
        await answer(refused(refusal))
    assert seen.value is refusal


# -- what is told about it


@dataclass
class TurnedClock:
    now: float = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def turn(self) -> None:
        self.now += 0.5


async def test_speed_counts_decoding_and_not_prefill() -> None:
    clock = TurnedClock()
    pipeline = FakePipeline(b"abcde", before_token=clock.turn)
    events = [event async for event in generate(served_model(pipeline), request(), anonymous(), clock)]
    finish = events[-1]
    assert isinstance(finish, FinishEvent)
    assert (finish.ttft_seconds, finish.tokens_per_second) == (0.5, 2.0)
    assert str(finish.route) == "0:2 node-a → 2:4 node-b"


async def test_a_single_token_has_no_speed() -> None:
    _, finish = await answer(FakePipeline([EOS]))
    assert finish.tokens_per_second is None


async def test_nothing_that_was_said_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await answer(FakePipeline([*b"the-answer", EOS]), request(content="the-question"))
    assert "answer finished" in caplog.text
    everything = " ".join(str(record.__dict__) for record in caplog.records)
    assert "the-answer" not in everything
    assert "the-question" not in everything
