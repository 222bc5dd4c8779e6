"""A request as the frames that open its session on every stage of a route. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from coordinator.routing import Route, RouteStage
from coordinator.token_pipeline import TokenRequest
from mesh.model.logprobs import TokenLogprobs
from mesh.model.sampling import SamplingParams
from mesh.wire import common_pb2, stage_pb2
from mesh.wire.tensors import FLOAT32


def openings(
    session: str,
    epoch: int,
    request: TokenRequest,
    route: Route,
    return_logits: bool,
    *,
    given_ids: Sequence[int] = (),
    is_prompt_scored: bool = False,
) -> Iterator[stage_pb2.OpenSession]:
    """One for each stage, in order; what only the last stage reads goes to it alone.

    ``given_ids`` are those of the answer that are known already; a prompt is scored once.
    """
    for index, stage in enumerate(route.stages):
        opening = stage_pb2.OpenSession(
            session=session,
            epoch=epoch,
            route=[_wire_stage(stage) for stage in route.stages],
            stage_index=index,
            max_tokens=len(request.prompt_ids) + request.max_new_tokens,
            sampling=_wire_sampling(request.sampling),
            request_id=request.request_id,
            dtype=FLOAT32,
            return_logits=return_logits,
            masked=request.grammar is not None,
        )
        if stage is route.stages[-1]:
            _tell_tokens(opening, request, given_ids, is_prompt_scored)
        yield opening


def read_logprobs(wire: stage_pb2.Logprobs) -> TokenLogprobs:
    return TokenLogprobs(wire.logprob, tuple(zip(wire.top_ids, wire.top_logprobs, strict=False)))


def _tell_tokens(
    opening: stage_pb2.OpenSession, request: TokenRequest, given_ids: Sequence[int], is_prompt_scored: bool
) -> None:
    scores = request.prompt_logprobs is not None and not is_prompt_scored
    if scores and request.prompt_logprobs is not None:
        opening.prompt_logprobs = request.prompt_logprobs
    if scores or request.sampling.needs_history:
        opening.token_ids.extend((*request.prompt_ids, *given_ids))
        opening.prompt_tokens = len(request.prompt_ids)


def _wire_sampling(params: SamplingParams) -> stage_pb2.SamplingParams:
    """Fields that ask for nothing stay out of the frame: a node that does not know them loses nothing."""
    wire = stage_pb2.SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        seed=params.seed,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias_ids=[token_id for token_id, _ in params.logit_bias],
        biases=[bias for _, bias in params.logit_bias],
    )
    if params.repetition_penalty != 1:
        wire.repetition_penalty = params.repetition_penalty
    if params.top_logprobs is not None:
        wire.top_logprobs = params.top_logprobs
    return wire


def _wire_stage(stage: RouteStage) -> stage_pb2.RouteStage:
    return stage_pb2.RouteStage(
        node_id=stage.node_id,
        endpoint=common_pb2.Endpoint(host=stage.host, port=stage.port),
        layers=common_pb2.LayerRange(start=stage.layers.start, stop=stage.layers.stop),
        incarnation=stage.incarnation,
    )
