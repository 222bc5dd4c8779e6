"""A model as it comes in, whatever format it came in.

    checkpoint = open_checkpoint(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
    checkpoint.config.num_layers
    checkpoint.shards["layer", 3]        # tensors to stream, canonical names, Hugging Face's RoPE order

An importer (``gguf_checkpoint.py``, ``hf_checkpoint.py``, ``meta_checkpoint.py``) reads the head of the files, checks every name, type and shape
against the config, and refuses by name what this version cannot run. So whoever holds a Checkpoint can write it without
surprises; weights are read only while they are streamed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from mesh.architecture import LlamaConfig
from mesh.errors import CheckpointUnsupported, NotFound
from mesh.weights.checkpoints.layout import Place
from mesh.weights.checkpoints.small_files import Terms
from mesh.weights.checkpoints.source_digest import model_digest
from mesh.weights.shards.shard import CHUNK_BYTES, FileRange, TensorSource, data_root
from mesh.weights.shards.tensor_types import num_bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    name: str  # fit for a manifest
    config: LlamaConfig
    shards: Mapping[Place, tuple[TensorSource, ...]]  # embed, layers, head
    aux_files: Mapping[str, bytes]  # tokenizer.json and, where there is one, chat_template.jinja
    terms: Terms  # texts that lie beside the weights
    source: Path
    source_files: tuple[Path, ...]  # everything that was read to make this

    @property
    def quantization(self) -> str:
        """The type of most weights of the layers."""
        weights: Counter[str] = Counter()
        for (role, _), sources in self.shards.items():
            if role == "layer":
                weights.update({source.type: prod(source.shape) for source in sources})
        return max(sorted(weights), key=weights.__getitem__)

    @property
    def weight_bytes(self) -> int:
        return sum(source.nbytes for sources in self.shards.values() for source in sources)

    @property
    def carried(self) -> Iterator[FileRange]:
        """The bytes of the source files that can be told from the shards, whatever their type is to become."""
        for sources in self.shards.values():
            for source in sources:
                yield from source.origin

    def source_digest(self) -> str:
        """As ``source_digest.py`` defines it, by reading everything once."""
        roots = {place: data_root(sources).hex() for place, sources in self.shards.items()}
        return model_digest(self.source_files, self.carried, roots)


def open_checkpoint(path: Path) -> Checkpoint:
    """A GGUF file, a Hugging Face directory or one of Meta's. Raises NotFound or CheckpointUnsupported."""
    if path.is_dir():
        from mesh.weights.checkpoints.meta_checkpoint import is_meta, open_meta

        if not (path / "config.json").is_file() and is_meta(path):
            return open_meta(path)
        from mesh.weights.checkpoints.hf_checkpoint import open_hf

        return open_hf(path)
    if not path.exists():
        raise NotFound(f"checkpoint {path} does not exist")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointUnsupported(
            f"{path}: neither a GGUF file nor a directory of Hugging Face's or Meta's files"
        )
    from mesh.weights.checkpoints.gguf_checkpoint import open_gguf

    return open_gguf(path)


def tensor_in_file(name: str, type_: str, shape: tuple[int, ...], path: Path, offset: int) -> TensorSource:
    """A tensor whose bytes lie in a file as they are."""
    nbytes = num_bytes(type_, shape)
    return TensorSource(
        name, type_, shape, lambda: file_chunks(path, offset, nbytes), (FileRange(path, offset, nbytes),)
    )


def file_chunks(path: Path, offset: int, nbytes: int) -> Iterator[bytes]:
    """Bytes of a file, a chunk at a time: read, never mapped, so that they do not stay in memory."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while nbytes:
            data = file.read(min(nbytes, CHUNK_BYTES))
            if not data:
                raise CheckpointUnsupported(f"{path} became shorter while it was read; nothing was written")
            yield data
            nbytes -= len(data)


def release_name(text: str) -> str:
    """A file's or directory's name made fit for a manifest: ``My model (v2)`` -> ``My-model-v2``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "model"
