"""The routes of the other two dialects of conversation: OpenAI's Responses and Anthropic's Messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import Response

from coordinator.api.answer import Answer, AnswerHead
from coordinator.api.anthropic_errors import ANTHROPIC_ERROR_RESPONSES
from coordinator.api.conversation import conversation_request, prepare
from coordinator.api.fields import AnswerFields
from coordinator.api.messages_request import CountRequest, MessagesRequest
from coordinator.api.messages_response import MessagesAnswer
from coordinator.api.responses_request import ResponsesRequest
from coordinator.api.responses_response import ResponsesAnswer
from coordinator.generation import GenerationRequest
from coordinator.grammar import GrammarCompiler
from coordinator.serving import ServedModel
from coordinator.tools.reading import CallReader

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with stream true its chunks, as server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


class Respond(Protocol):
    def __call__(
        self,
        request: Request,
        model: ServedModel,
        fields: AnswerFields,
        wanted: list[GenerationRequest],
        answer: Answer,
        new_reader: Callable[[], CallReader] | None = None,
    ) -> Response: ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What the app has for every dialect."""

    find: Callable[[str, Request], ServedModel]
    compiler_of: Callable[[ServedModel], GrammarCompiler]
    head: Callable[[ServedModel, str], AnswerHead]
    respond: Respond


def dialect_routes(desk: Desk) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/responses", response_model=None, responses=STREAMED)
    async def create_response(body: ResponsesRequest, request: Request) -> Response:
        model = desk.find(body.model, request)
        prepared = await prepare(body.to_conversation(_vocab_size(model)), model, desk.compiler_of(model))
        wanted = conversation_request(
            body,
            request.state.request_id,
            model,
            prepared,
            max_tokens=body.max_output_tokens,
            top_logprobs=body.logprobs,
        )
        answer = ResponsesAnswer(desk.head(model, "resp"), model.tokenizer, body)
        return desk.respond(request, model, body, [wanted], answer, prepared.new_reader)

    @router.post("/v1/messages", response_model=None, responses={**STREAMED, **ANTHROPIC_ERROR_RESPONSES})
    async def create_message(body: MessagesRequest, request: Request) -> Response:
        model = desk.find(body.model, request)
        prepared = await prepare(body.to_conversation(_vocab_size(model)), model, desk.compiler_of(model))
        wanted = conversation_request(
            body, request.state.request_id, model, prepared, max_tokens=body.max_tokens
        )
        stop = (*wanted.stop, *(body.stop_sequences or ()))
        wanted = dataclasses.replace(wanted, stop=stop, is_shortened=True)
        answer = MessagesAnswer(desk.head(model, "msg"), len(prepared.prompt))
        return desk.respond(request, model, body, [wanted], answer, prepared.new_reader)

    @router.post("/v1/messages/count_tokens", responses=ANTHROPIC_ERROR_RESPONSES)
    async def count_tokens(body: CountRequest, request: Request) -> dict[str, int]:
        model = desk.find(body.model, request)
        prepared = await prepare(body.to_conversation(_vocab_size(model)), model, desk.compiler_of(model))
        return {"input_tokens": len(prepared.prompt)}

    return router


def _vocab_size(model: ServedModel) -> int:
    return model.manifest.config.vocab_size
