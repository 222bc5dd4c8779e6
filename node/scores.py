"""Log-probabilities as a last stage tells them to the coordinator. Pure."""

from __future__ import annotations

from mesh.model.logprobs import TokenLogprobs
from mesh.wire import stage_pb2
from node.sessions import Session


def scores_frame(
    session: Session, step: stage_pb2.Step, scores: tuple[TokenLogprobs, ...]
) -> stage_pb2.Frame:
    """Of the prompt's tokens that follow those of ``step``."""
    return stage_pb2.Frame(
        scores=stage_pb2.PromptScores(
            session=session.id,
            epoch=session.epoch,
            position=step.position + 1,
            logprobs=[wire_logprobs(each) for each in scores],
        )
    )


def wire_logprobs(logprobs: TokenLogprobs) -> stage_pb2.Logprobs:
    return stage_pb2.Logprobs(
        logprob=logprobs.logprob,
        top_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )
