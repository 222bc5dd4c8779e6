"""Stages of one tiny model behind real gRPC servers, in the test's own process and event loop."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
import torch

from coordinator.routing import Route, RouteStage
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.layers import LayerRange
from mesh.model.kv_cache import KvBudget
from mesh.model.llama import Stage
from mesh.model.prefill import PREFILL_CHUNK
from mesh.wire import stage_pb2_grpc
from mesh.wire.channel import server_options
from mesh.wire.tensors import StageContract
from node.engine import Engine
from node.service import StageIdentity, StageService
from node.sessions import SessionTable

CONFIG = LlamaConfig(
    hidden_size=32,
    intermediate_size=48,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=300,
    context_length=1024,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tied=False,
    bos_token_id=None,
    eos_token_ids=(2,),
)


def random_stage(layers: LayerRange, config: LlamaConfig = CONFIG) -> Stage:
    """The same weights for the same layer, whatever range it is part of."""
    return Stage.from_tensors(config, layers, random_tensors(config))


@functools.cache
def random_tensors(config: LlamaConfig) -> Mapping[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    d, f = config.hidden_size, config.intermediate_size

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        values = rng.standard_normal((rows, columns)) * scale * columns**-0.5
        return torch.from_numpy(values.astype(np.float32))

    tensors = {
        "model.embed_tokens.weight": matrix(config.vocab_size, d, 10.0),
        "model.norm.weight": torch.ones(d),
        "lm_head.weight": matrix(config.vocab_size, d, 4.0),
    }
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        tensors |= {
            prefix + "input_layernorm.weight": torch.ones(d),
            prefix + "self_attn.q_proj.weight": matrix(config.q_size, d),
            prefix + "self_attn.k_proj.weight": matrix(config.kv_size, d),
            prefix + "self_attn.v_proj.weight": matrix(config.kv_size, d),
            prefix + "self_attn.o_proj.weight": matrix(d, config.q_size),
            prefix + "post_attention_layernorm.weight": torch.ones(d),
            prefix + "mlp.gate_proj.weight": matrix(f, d),
            prefix + "mlp.up_proj.weight": matrix(f, d),
            prefix + "mlp.down_proj.weight": matrix(d, f),
        }
    return tensors


@dataclass
class Served:
    """One stage's server, and the insides that tests look at."""

    route_stage: RouteStage
    service: StageService
    sessions: SessionTable
    budget: KvBudget
    engine: Engine
    server: grpc.aio.Server = field(repr=False)

    async def kill(self) -> None:
        """As a process dies: no goodbye, every stream broken at once."""
        await self.server.stop(grace=None)


@contextlib.asynccontextmanager
async def serve_stage(
    layers: LayerRange,
    *,
    name: str,
    incarnation: int = 1,
    kv_tokens: int = 4096,
    max_sessions: int = 64,
    stage: Any = None,
    config: LlamaConfig = CONFIG,
) -> AsyncIterator[Served]:
    """``stage`` is of ``config``; by default the random torch stage of these layers."""
    stage = stage or random_stage(layers)
    budget = KvBudget(kv_tokens)
    sessions = SessionTable(budget, max_sessions, stage.new_cache)
    service = StageService(
        StageIdentity(name, incarnation, "release", "kernel", layers, config.num_layers),
        StageContract(layers.is_first(), config.hidden_size, config.vocab_size, PREFILL_CHUNK),
        sessions,
    )
    engine = Engine(stage, is_last=layers.is_last(config.num_layers), device="cpu", on_done=service.on_done)
    service.attach(engine)
    engine.start()
    server = grpc.aio.server(options=server_options())
    stage_pb2_grpc.add_StageServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Served(
            RouteStage(name, name, "127.0.0.1", port, layers, incarnation),
            service,
            sessions,
            budget,
            engine,
            server,
        )
    finally:
        await service.stop()
        await server.stop(grace=0)
        await engine.stop()


@contextlib.asynccontextmanager
async def serve_cut(cuts: Sequence[int], **options: int) -> AsyncIterator[tuple[Route, list[Served]]]:
    """Stages of the whole model cut at ``cuts``, and the route through them."""
    borders = [0, *cuts, CONFIG.num_layers]
    async with contextlib.AsyncExitStack() as stack:
        served = [
            await stack.enter_async_context(
                serve_stage(LayerRange(start, stop), name=f"node-{start}", **options)
            )
            for start, stop in itertools.pairwise(borders)
        ]
        yield Route(tuple(each.route_stage for each in served)), served
