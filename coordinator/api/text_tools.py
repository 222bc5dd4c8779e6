"""``/tokenize``, ``/detokenize`` and ``/apply-template`` as llama.cpp's server has them: what a model reads, made visible.

Also understood in vLLM's words, with its ``/tokenizer_info``: where lm-eval finds them it needs no tokenizer of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, Field

from coordinator.api.chat_request import ChatMessage, TemplateVariables, to_messages
from coordinator.api.conversation import Conversation, render
from coordinator.api.fields import Lenient, Text, TokenId
from coordinator.api.tool_fields import MAX_TOOLS, ToolField, chat_tools
from coordinator.serving import ServedModel
from mesh.errors import RequestRefused

MAX_TOKENS = 1 << 20  # as many as a body can spell


class _OfModel(Lenient):
    model: Text | None = Field(None, description="The first of /v1/models if absent.")


class TokenizeRequest(_OfModel):
    content: Text = Field(validation_alias=AliasChoices("content", "prompt"))
    add_special: bool | None = Field(
        None,
        validation_alias=AliasChoices("add_special", "add_special_tokens"),
        description="Begin as the model was trained to (BOS); false if absent.",
    )
    parse_special: bool | None = Field(
        None, description="Special tokens are always recognised; false is refused."
    )
    with_pieces: bool | None = Field(
        None, description="Tell each token's text, or its bytes if they are no text."
    )


class DetokenizeRequest(_OfModel):
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS)]


class TemplateRequest(_OfModel):
    messages: list[ChatMessage]
    tools: Annotated[list[ToolField], Field(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: TemplateVariables | None = None


def text_routes(find: Callable[[str | None, Request], ServedModel]) -> APIRouter:
    """``find`` returns the model of that name, or the first; raises RequestRefused."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, list[Any]]:
        tokenizer = find(body.model, request).tokenizer
        if body.parse_special is False:
            raise RequestRefused(
                "parse_special false is not supported by this mesh; leave it out",
                code="unsupported_parameter",
                param="parse_special",
            )
        add_special = bool(body.add_special)
        ids = await asyncio.to_thread(tokenizer.encode, body.content, add_special=add_special)
        if not body.with_pieces:
            return {"tokens": ids}
        return {"tokens": [{"id": each, "piece": _piece(tokenizer.token_bytes(each))} for each in ids]}

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, str]:
        model = find(body.model, request)
        vocab_size = model.manifest.config.vocab_size
        if body.tokens and max(body.tokens) >= vocab_size:
            raise RequestRefused(
                f"tokens: {max(body.tokens)} is not in the model's vocabulary of {vocab_size}",
                param="tokens",
            )
        text = await asyncio.to_thread(model.tokenizer.decode, body.tokens, show_special=True)
        return {"content": text, "prompt": text}

    @router.get("/tokenizer_info")
    async def tokenizer_info(request: Request, model: str | None = None) -> dict[str, Any]:
        found = find(model, request)
        config, token = found.manifest.config, found.tokenizer.token
        return {
            "bos_token": None if config.bos_token_id is None else token(config.bos_token_id),
            "eos_token": token(config.eos_token_ids[0]) if config.eos_token_ids else None,
            "model_max_length": found.context_length,
            "chat_template": found.chat_template.source,
        }

    @router.post("/apply-template")
    async def apply_template(body: TemplateRequest, request: Request) -> dict[str, str]:
        model = find(body.model, request)
        messages = to_messages(body.messages)
        use = chat_tools(body.tools or (), None, is_parallel=True)
        conversation = Conversation(messages, use, variables=body.chat_template_kwargs or {})
        return {"prompt": await asyncio.to_thread(render, conversation, model)}

    return router


def _piece(token: bytes) -> str | list[int]:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
