"""The source digest: every byte that was read is in it, nothing else is, and packing finds it on its way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.cli.main import main
from mesh.errors import MeshError
from mesh.publishing import pack_release
from mesh.weights.checkpoints.checkpoint import open_checkpoint
from mesh.weights.checkpoints.source_digest import METHOD, rest
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import FileRange
from mesh.weights.trust.signing import PrivateKey
from tests.mesh.weights.tiny_gguf import write_tiny_gguf
from tests.support.tiny_meta import write_tiny_meta
from tests.support.tiny_models import write_tiny_checkpoint

KEY = PrivateKey.from_seed(bytes(32))


def hugging_face(directory: Path) -> Path:
    return write_tiny_checkpoint(directory / "x", num_layers=1)


def gguf(directory: Path) -> Path:
    return write_tiny_gguf(directory)[0]


def meta(directory: Path) -> Path:
    write_tiny_meta(directory / "x", num_ranks=2)
    return directory / "x"


FORMATS = [hugging_face, gguf, meta]


def digest_in(out: Path, source: Path, **options: Any) -> str:
    manifest = pack_release(source, out, "Apache-2.0", None, KEY, **options)
    assert manifest.provenance.method == METHOD
    return manifest.provenance.source_digest


@pytest.mark.parametrize("write", FORMATS)
def test_packing_records_what_the_source_alone_tells(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path)
    assert digest_in(tmp_path / "a", source) == open_checkpoint(source).source_digest()


@pytest.mark.parametrize("write", FORMATS)
def test_any_byte_that_was_read_changes_it(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    source = write(tmp_path)
    before = open_checkpoint(source).source_digest()
    for path in open_checkpoint(source).source_files:
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            try:
                assert open_checkpoint(source).source_digest() != before, (path.name, at)
            except MeshError:
                continue  # no model any more
        path.write_bytes(data)
    assert open_checkpoint(source).source_digest() == before


def test_neither_license_name_nor_quantization_changes_it(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    plain = digest_in(tmp_path / "a", source)
    assert digest_in(tmp_path / "b", source, name="other", quantize="q8_0") == plain
    other = pack_release(source, tmp_path / "c", "LicenseRef-x", b"other words", KEY)
    assert other.provenance.source_digest == plain


def test_it_is_the_digest_of_the_text_that_is_documented(tmp_path: Path) -> None:
    """Written out once more, from the files alone: whoever changes the definition needs a new number for it."""
    source = hugging_face(tmp_path)
    config = json.loads((source / "config.json").read_text())
    weights = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {
        name: weights[8 + length + entry["data_offsets"][0] : 8 + length + entry["data_offsets"][1]]
        for name, entry in header.items()
    }
    gap = (0).to_bytes(8, "little") + (8 + length).to_bytes(8, "little") + weights[: 8 + length]
    files = {"model.safetensors": (len(weights), gap)}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        data = (source / name).read_bytes()
        files[name] = (len(data), bytes(8) + len(data).to_bytes(8, "little") + data)
    lines = sorted(
        f"file {size} {hashlib.sha256(part).hexdigest()} {name}\n" for name, (size, part) in files.items()
    )
    assert config["num_hidden_layers"] == 1
    for shard, wanted in (
        ("embed -", lambda name: "embed_tokens" in name),
        ("layer 0", lambda name: name.startswith("model.layers.0.")),
        ("head -", lambda name: name in ("model.norm.weight", "lm_head.weight")),
    ):
        hasher = RootHasher()
        prefix = "model.layers.0." if shard == "layer 0" else "model."
        for _, _, data in sorted(
            (-len(d), n.removeprefix(prefix), d) for n, d in tensors.items() if wanted(n)
        ):
            hasher.update(data)
        lines.append(f"shard {shard} {hasher.root().hex()}\n")
    text = "".join(["llama-mesh.source/1\n", *lines])
    assert open_checkpoint(source).source_digest() == hashlib.sha256(text.encode()).hexdigest()


def test_the_command_says_it_of_models_and_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = hugging_face(tmp_path)
    for kind in ("model", "files"):
        recorded = digest_in(tmp_path / kind, source, kind=kind)
        assert main(["digest", str(source), "--as", kind, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == {"schema": "mesh.digest/1", "source": "x", "method": METHOD, "digest": recorded}


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=6))
def test_what_is_carried_and_the_rest_are_the_whole_file(size: int, ranges: list[tuple[int, int]]) -> None:
    carried = [FileRange(Path("x"), min(at, size), min(n, size - min(at, size))) for at, n in ranges]
    gaps = [at for start, length in rest(size, carried) for at in range(start, start + length)]
    held = {at for r in carried for at in range(r.offset, r.offset + r.nbytes)}
    assert gaps == sorted(set(range(size)) - held)
