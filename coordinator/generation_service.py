"""Generation over gRPC: the answers of the HTTP side without HTTP, with health and reflection beside them.

Convert in, call, convert out. The same keys, quotas and queue as for HTTP; a refusal carries what an HTTP client would
read in body and headers as trailing metadata (``mesh-code``, ``mesh-param``, ``retry-after``).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio

from coordinator.access.api_keys import Scope
from coordinator.access.callers import Caller, Callers, bearer_key
from coordinator.api.errors import Failure, describe
from coordinator.api.middleware import SANE_REQUEST_ID
from coordinator.generation import generate_all
from coordinator.generation_messages import schema_of, to_event, to_generation_requests
from coordinator.grammar import GrammarCompiler
from coordinator.per_release import PerRelease
from coordinator.serving import MeshHealth, ServedModel
from mesh.errors import MeshError, RequestRefused
from mesh.wire import generation_pb2, generation_pb2_grpc

logger = logging.getLogger(__name__)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class GenerationService(generation_pb2_grpc.GenerationServicer):
    def __init__(
        self, models: Mapping[str, ServedModel], health: Callable[[], MeshHealth], callers: Callers
    ) -> None:
        self._models, self._health, self._callers = models, health, callers
        self._compiler_of = PerRelease(_compiler)

    async def Generate(  # noqa: N802 - the proto's name
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[generation_pb2.GenerateEvent]:
        metadata = _metadata(context)
        request_id = _request_id(metadata)
        await context.send_initial_metadata((("x-request-id", request_id),))
        try:
            caller = await self._callers.identify(bearer_key(metadata.get("authorization")))
            self._callers.begin(caller, Scope.GENERATE, is_stream=True)
            try:
                async for event in self._answer(request, request_id, caller):
                    yield event
            finally:
                caller.meter.end_stream()
        except MeshError as exc:
            await _abort(context, exc, request_id)

    async def ListModels(  # noqa: N802
        self, request: generation_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> generation_pb2.ListModelsReply:
        metadata, now = _metadata(context), self._health()
        try:
            caller = await self._callers.identify(bearer_key(metadata.get("authorization")))
            self._callers.begin(caller, Scope.INSPECT, is_stream=False)
        except MeshError as exc:
            await _abort(context, exc, _request_id(metadata))
        return generation_pb2.ListModelsReply(
            models=[
                generation_pb2.Model(
                    name=model.name,
                    release_id=model.manifest.release_id,
                    context_length=model.context_length,
                    is_ready=now.model(model.name).is_ready,
                )
                for model in self._models.values()
                if caller.may_use(model.name)
            ]
        )

    async def _answer(
        self, request: generation_pb2.GenerateRequest, request_id: str, caller: Caller
    ) -> AsyncIterator[generation_pb2.GenerateEvent]:
        model = self._models.get(request.model)
        if model is None or not caller.may_use(model.name):
            raise RequestRefused(
                f"model {request.model[:100]!r} does not exist here; ListModels says which do",
                status=404,
                code="model_not_found",
                param="model",
            )
        schema = schema_of(request)
        grammar = None if schema is None else await self._compiler_of(model).compile(schema, "json_schema")
        vocab_size = model.manifest.config.vocab_size
        wanted = to_generation_requests(request, request_id, vocab_size, grammar)
        async with aclosing(generate_all(model, wanted, caller)) as events:
            async for event in events:
                yield to_event(event, model.fingerprint)


def _compiler(model: ServedModel) -> GrammarCompiler:
    config = model.manifest.config
    return GrammarCompiler(model.tokenizer, config.vocab_size, tuple(config.eos_token_ids))


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: MeshError, request_id: str) -> None:
    failure = describe(error)
    logger.info(
        "request refused",
        extra={"request_id": request_id, "status": failure.status, "code": failure.code},
    )
    code = _CODES.get(failure.status, grpc.StatusCode.INTERNAL)
    await context.abort(code, failure.message, trailing_metadata=_trailing(failure))


def _trailing(failure: Failure) -> tuple[tuple[str, str], ...]:
    told = {"mesh-code": failure.code, "mesh-param": failure.param, **failure.headers()}
    return tuple((name.lower(), value) for name, value in told.items() if value is not None)


def _metadata(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    found = context.invocation_metadata() or ()
    return {str(key): value for key, value in found if isinstance(value, str)}


def _request_id(metadata: Mapping[str, str]) -> str:
    given = metadata.get("x-request-id", "")
    return given if SANE_REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
