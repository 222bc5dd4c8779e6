"""A served model whose tokens are bytes: the tiny tokenizer, ChatML, and a pipeline of the test's choice."""

from __future__ import annotations

import json

from coordinator.access.admission import Admission
from coordinator.routing import Route
from coordinator.serving import MeshHealth, ModelHealth, ServedModel
from coordinator.token_pipeline import TokenPipeline
from mesh.architecture import LlamaConfig, RopeConfig
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.weights.shards.shard import Shard, TensorInfo
from mesh.weights.trust.manifest import LicenseRef, Manifest, Provenance, ShardRef, TorrentRef
from tests.support.fake_pipeline import FakeRoom
from tests.support.tiny_models import CHATML, byte_level_tokenizer

EOS = 258  # <|im_end|>
NUM_LAYERS = 4


def served_model(
    pipeline: TokenPipeline,
    *,
    name: str = "tiny",
    context_length: int = 512,
    template: str = CHATML,
    admission: Admission | None = None,
    route: Route | None = None,
) -> ServedModel:
    files = {
        "tokenizer.json": json.dumps(byte_level_tokenizer()).encode(),
        "chat_template.jinja": template.encode(),
        "config.json": json.dumps(_config(context_length).to_json()).encode(),
    }
    tensors, data = {}, b""
    for file, content in files.items():
        tensors[file] = TensorInfo(file, "U8", (len(content),), len(data), len(content))
        data += content
    aux = Shard("aux", None, "0" * 64, tensors, memoryview(data))
    tokenizer = Tokenizer.from_aux(aux)
    return ServedModel(
        name=name,
        manifest=_manifest(name, context_length),
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_aux(aux, tokenizer),
        pipeline=pipeline,
        admission=admission or Admission(FakeRoom(route=route)),
        created=1_750_000_000,
    )


def health(*coverage: int, name: str = "tiny") -> MeshHealth:
    """``health(1, 1, 0, 2)``: layer 2 is served by nobody."""
    return MeshHealth((ModelHealth(name, coverage),), nodes=2)


def _config(context_length: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_layers=NUM_LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=300,
        context_length=context_length,
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        tied=False,
        bos_token_id=256,
        eos_token_ids=(256, EOS),
    )


def _manifest(name: str, context_length: int) -> Manifest:
    kinds = [
        ("embed", None),
        *(("layer", layer) for layer in range(NUM_LAYERS)),
        ("head", None),
        ("aux", None),
    ]
    return Manifest(
        name=name,
        family="llama",
        model=_config(context_length),
        quantization="F32",
        shards=tuple(
            ShardRef(role, layer, f"{role}-{layer}.safetensors".lower(), 1000 + index, f"{index:064x}")
            for index, (role, layer) in enumerate(kinds)
        ),
        torrent=TorrentRef(name, 16384, False, "a" * 64),
        license=LicenseRef("Apache-2.0", "b" * 64, False),
        provenance=Provenance("tiny", "c" * 64, "tests"),
        created="2026-01-01T00:00:00Z",
    )
