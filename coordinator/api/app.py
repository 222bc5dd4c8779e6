"""The routes: convert in, call, convert out.

Answers at once whatever can be answered from values; what a model must say is handed to ``answering``. No CORS: a
web page from elsewhere has no business with a mesh on this machine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

import mesh
from coordinator.access.callers import Caller, Callers, NoKeys
from coordinator.api import chat_request, completion_request
from coordinator.api.answer import Answer, AnswerHead
from coordinator.api.answering import AnswerResponse
from coordinator.api.chat_request import ChatRequest
from coordinator.api.chat_response import ChatAnswer
from coordinator.api.completion_request import CompletionRequest
from coordinator.api.completion_response import CompletionAnswer
from coordinator.api.constraint import compile_constraint, constraint_of
from coordinator.api.conversation import prepare
from coordinator.api.dialects import STREAMED, Desk, dialect_routes
from coordinator.api.errors import ERROR_RESPONSES, Failure, describe, respond
from coordinator.api.fields import AnswerFields
from coordinator.api.gate import Gate
from coordinator.api.middleware import BodyLimit, RequestId
from coordinator.api.text_tools import text_routes
from coordinator.api.tracker_route import tracker_routes
from coordinator.calling import with_calls
from coordinator.generation import GenerationRequest, generate_all
from coordinator.grammar import GrammarCompiler
from coordinator.per_release import PerRelease
from coordinator.probing import Probe, ProbeOutcome
from coordinator.serving import MeshHealth, ModelHealth, ServedModel
from coordinator.tools.reading import CallReader
from coordinator.tracker import Tracker
from mesh.errors import MeshError, RequestRefused


def create_app(
    models: Mapping[str, ServedModel],
    health: Callable[[], MeshHealth],
    callers: Callers | None = None,
    tracker: Tracker | None = None,
) -> FastAPI:
    """``models`` by the name clients ask for, in the order they are listed, read anew for every request: models come
    and go. ``health`` is asked every time.

    ``callers`` knows the API keys; without it everybody may ask.
    """
    # The documentation pages load their scripts from elsewhere; /openapi.json is enough and works offline.
    app = FastAPI(
        title="llama-mesh",
        version=mesh.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERROR_RESPONSES,
    )
    compiler_of, probe_of = PerRelease(_compiler), PerRelease(Probe)
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, callers=callers or Callers(NoKeys()))
    app.add_middleware(RequestId)  # the last added is the outermost
    for kind in (MeshError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, respond)

    @app.post("/v1/chat/completions", response_model=None, responses=STREAMED)
    async def create_chat_completion(chat: ChatRequest, request: Request) -> Response:
        model = _find(models, chat.model, request)
        prepared = await prepare(chat.to_conversation(_vocab_size(model)), model, compiler_of(model))
        wanted = chat_request.to_generation_requests(chat, request.state.request_id, model, prepared)
        answer = ChatAnswer(
            _head(model, "chatcmpl"),
            model.tokenizer,
            len(wanted),
            bool(chat.logprobs),
            prompt_ids=prepared.prompt if chat.return_token_ids else None,
        )
        return _respond(request, model, chat, wanted, answer, prepared.new_reader)

    @app.post("/v1/completions", response_model=None, responses=STREAMED)
    async def create_completion(completion: CompletionRequest, request: Request) -> Response:
        model = _find(models, completion.model, request)
        constraint, grammar = constraint_of(completion), None
        if constraint is not None:
            grammar = await compile_constraint(constraint, compiler_of(model))
        wanted = completion_request.to_generation_requests(
            completion, request.state.request_id, model, grammar
        )
        answer = CompletionAnswer(
            _head(model, "cmpl"),
            model.tokenizer,
            completion.prompt,
            answers_per_prompt=completion.answers,
            choices_per_prompt=completion.n or 1,
            has_logprobs=completion.logprobs is not None,
            echoes=bool(completion.echo),
            tells_ids=bool(completion.return_token_ids),
        )
        return _respond(request, model, completion, wanted, answer)

    app.include_router(
        dialect_routes(
            Desk(
                find=lambda name, request: _find(models, name, request),
                compiler_of=compiler_of,
                head=_head,
                respond=_respond,
            )
        )
    )

    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models")
    async def list_models(request: Request) -> dict[str, Any]:
        now, caller = health(), _caller(request)
        listed = [_describe(model, now) for model in models.values() if caller.may_use(model.name)]
        return {"object": "list", "data": listed}

    @app.head("/v1/models/{name:path}", include_in_schema=False)
    @app.get("/v1/models/{name:path}")
    async def retrieve_model(name: str, request: Request) -> dict[str, Any]:
        return _describe(_find(models, name, request), health())

    @app.head("/v1/health", include_in_schema=False)
    @app.get("/v1/health", include_in_schema=False)
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def is_ready() -> Response:
        return _health_response(health())

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez")
    async def is_alive() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def can_answer() -> Response:
        asked = dict(models)
        outcomes = await asyncio.gather(*(probe_of(model).outcome() for model in asked.values()))
        return _probe_response(dict(zip(asked, outcomes, strict=True)))

    def find_or_first(name: str | None, request: Request) -> ServedModel:
        usable = (key for key in models if _caller(request).may_use(key))
        return _find(models, next(usable, "") if name is None else name, request)

    app.include_router(text_routes(find_or_first))
    if tracker is not None:
        app.include_router(tracker_routes(tracker))
    return app


def _respond(
    request: Request,
    model: ServedModel,
    fields: AnswerFields,
    wanted: list[GenerationRequest],
    answer: Answer,
    new_reader: Callable[[], CallReader] | None = None,
) -> Response:
    events = generate_all(model, wanted, _caller(request))
    return AnswerResponse(
        answer,
        events if new_reader is None else with_calls(events, new_reader),
        stream=bool(fields.stream),
        include_usage=fields.include_usage,
        timeout_seconds=fields.timeout,
    )


def _head(model: ServedModel, kind: str) -> AnswerHead:
    return AnswerHead(f"{kind}-{uuid.uuid4().hex}", int(time.time()), model.name, model.fingerprint)


def _compiler(model: ServedModel) -> GrammarCompiler:
    config = model.manifest.config
    return GrammarCompiler(model.tokenizer, config.vocab_size, tuple(config.eos_token_ids))


def _vocab_size(model: ServedModel) -> int:
    return model.manifest.config.vocab_size


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def _find(models: Mapping[str, ServedModel], name: str, request: Request) -> ServedModel:
    """Raises RequestRefused (404) for a model that is not here, or not for this caller's key."""
    usable = {key: model for key, model in models.items() if _caller(request).may_use(key)}
    model = usable.get(name)
    if model is None:
        raise RequestRefused(
            f"model {name[:100]!r} does not exist here; this mesh serves: {', '.join(usable) or 'nothing yet'}",
            status=404,
            code="model_not_found",
            param="model",
        )
    return model


def _describe(model: ServedModel, now: MeshHealth) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "llama-mesh",
        "max_model_len": model.context_length,
        "meta": {
            "n_ctx_train": manifest.config.context_length,
            "n_vocab": manifest.config.vocab_size,
            "size": manifest.total_bytes,
        },
        "mesh": {
            "release_id": manifest.release_id,
            "license": manifest.license.id,
            "quantization": manifest.quantization,
            **_coverage(now.model(model.name)),
        },
    }


def _health_response(now: MeshHealth) -> Response:
    state = {
        "nodes": now.nodes,
        "models": [{"id": model.name, "ready": model.is_ready, **_coverage(model)} for model in now.models],
    }
    if now.is_ready:
        return JSONResponse({"status": "ok", **state})
    missing = "; ".join(f"{m.name} lacks layers {', '.join(map(str, m.missing))}" for m in now.models)
    failure = Failure(503, "mesh_incomplete", missing or "no model is served", retry_after=now.retry_after)
    return JSONResponse({**failure.body(), **state}, status_code=failure.status, headers=failure.headers())


def _probe_response(outcomes: Mapping[str, ProbeOutcome]) -> Response:
    """Ready as soon as one model answers, as ``/health``."""
    state = [
        {
            "id": name,
            "ready": outcome.error is None,
            "probe_ms": round(outcome.seconds * 1000, 1),
            "error": None if outcome.error is None else str(outcome.error),
        }
        for name, outcome in outcomes.items()
    ]
    errors = [outcome.error for outcome in outcomes.values() if outcome.error is not None]
    if len(errors) < len(outcomes):
        return JSONResponse({"status": "ok", "models": state})
    told = describe(errors[0]) if errors else Failure(503, "mesh_incomplete", "no model is served")
    failure = dataclasses.replace(told, status=503)
    return JSONResponse({**failure.body(), "models": state}, status_code=503, headers=failure.headers())


def _coverage(model: ModelHealth) -> dict[str, Any]:
    return {
        "layers": len(model.coverage),
        "missing": [str(layers) for layers in model.missing],
        "coverage": list(model.coverage),  # ready stages of each layer
    }
