"""Frames carry hidden states exactly, and refuse everything that is not what the stage agreed to."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.wire import stage_pb2
from mesh.wire.tensors import (
    FLOAT32,
    MAX_PAYLOAD_BYTES,
    FrameRefused,
    StageContract,
    StepAssembler,
    pack_rows,
    pack_token_ids,
)

MIDDLE = StageContract(is_first=False, hidden_size=8, vocab_size=300, max_step_tokens=128)
FIRST = StageContract(is_first=True, hidden_size=8, vocab_size=300, max_step_tokens=128)


def rows_of(num_tokens: int, hidden_size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_tokens, hidden_size)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 128), min_size=1, max_size=12),
    hidden_size=st.sampled_from([1, 8, 4096, 16384]),
)
def test_any_mix_of_steps_survives_the_wire_bit_for_bit(sizes: list[int], hidden_size: int) -> None:
    contract = StageContract(False, hidden_size, 300, 128)
    sent = [
        (stage_pb2.Step(session=f"s{i}", epoch=1, step_id=1, position=7), rows_of(size, hidden_size, i))
        for i, size in enumerate(sizes)
    ]
    assembler = StepAssembler(contract)
    received = []
    for frame in pack_rows(sent, hidden_size):
        assert len(frame.payload) <= max(MAX_PAYLOAD_BYTES, 4 * hidden_size)
        received += assembler.push(stage_pb2.Steps.FromString(frame.SerializeToString()))
    assert [step.session for step, _ in received] == [step.session for step, _ in sent]
    for (_, rows), (_, original) in zip(received, sent, strict=True):
        assert np.array_equal(rows, original)


def test_many_small_steps_share_one_frame() -> None:
    steps = [(stage_pb2.Step(session=f"s{i}"), rows_of(1, 8)) for i in range(100)]
    assert len(list(pack_rows(steps, 8))) == 1


def test_token_ids_reach_the_first_stage() -> None:
    frame = pack_token_ids(stage_pb2.Step(session="s", token_ids=[1, 2, 299]))
    [(step, rows)] = StepAssembler(FIRST).push(frame)
    assert rows is None
    assert list(step.token_ids) == [1, 2, 299]
    assert step.num_tokens == 3


def good_frame() -> stage_pb2.Steps:
    [frame] = pack_rows([(stage_pb2.Step(session="s", epoch=1, step_id=1), rows_of(4, 8))], 8)
    return frame


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("dtype", lambda f: setattr(f, "dtype", 2)),
        ("hidden size", lambda f: setattr(f, "hidden_size", 9)),
        ("payload", lambda f: setattr(f, "payload", f.payload[:-1])),
        ("payload", lambda f: setattr(f, "payload", f.payload + b"x")),
        ("payload", lambda f: setattr(f.steps[0], "num_rows", 3)),
        ("step of 0 tokens", lambda f: setattr(f.steps[0], "num_tokens", 0)),
        ("step of 129 tokens", lambda f: setattr(f.steps[0], "num_tokens", 129)),
        ("rows 2\\+4", lambda f: setattr(f.steps[0], "first_row", 2)),
        ("rows 0\\+4", lambda f: setattr(f.steps[0], "num_tokens", 3)),
    ],
)
def test_frame_that_breaks_the_contract_is_refused_by_what_is_wrong(name: str, spoil: object) -> None:
    frame = good_frame()
    spoil(frame)  # type: ignore[operator]
    with pytest.raises(FrameRefused, match=name):
        StepAssembler(MIDDLE).push(frame)


@pytest.mark.parametrize(
    "frame",
    [
        stage_pb2.Steps(steps=[stage_pb2.Step(session="s", num_tokens=1, token_ids=[300])]),
        stage_pb2.Steps(steps=[stage_pb2.Step(session="s", num_tokens=2, token_ids=[1])]),
        stage_pb2.Steps(steps=[stage_pb2.Step(session="s", num_tokens=0)]),
        stage_pb2.Steps(steps=[stage_pb2.Step(session="s", num_tokens=129, token_ids=[1] * 129)]),
        stage_pb2.Steps(steps=[stage_pb2.Step(session="s", num_tokens=1, token_ids=[1])], payload=b"rows"),
    ],
)
def test_first_stage_refuses_what_are_not_its_token_ids(frame: stage_pb2.Steps) -> None:
    with pytest.raises(FrameRefused):
        StepAssembler(FIRST).push(frame)


def test_rows_of_another_step_do_not_complete_an_unfinished_one() -> None:
    hidden = 16384
    contract = StageContract(False, hidden, 300, 128)
    frames = list(pack_rows([(stage_pb2.Step(session="s", step_id=1), rows_of(40, hidden))], hidden))
    assert len(frames) == 3
    assembler = StepAssembler(contract)
    assert assembler.push(frames[0]) == []
    frames[1].steps[0].step_id = 2
    with pytest.raises(FrameRefused, match="continue"):
        assembler.push(frames[1])
    with pytest.raises(FrameRefused):  # the unfinished step is gone: nothing lingers
        assembler.push(frames[2])


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
def test_no_bytes_that_parse_as_a_frame_can_do_worse_than_be_refused(data: bytes) -> None:
    try:
        frame = stage_pb2.Steps.FromString(data)
    except DecodeError:  # protobuf's own refusal, not ours to test
        return
    for contract in (FIRST, MIDDLE):
        try:
            for step, rows in StepAssembler(contract).push(frame):
                assert 0 < step.num_tokens <= contract.max_step_tokens
                assert rows is None or rows.shape == (step.num_tokens, contract.hidden_size)
        except FrameRefused:
            pass


def test_dtype_on_the_wire_is_float32() -> None:
    assert good_frame().dtype == FLOAT32
