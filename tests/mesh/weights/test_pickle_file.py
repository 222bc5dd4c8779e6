"""A pickle gives its tensors and nothing else: whatever it asks for, nothing runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import CheckpointUnsupported
from mesh.publishing import pack_release
from mesh.weights.checkpoints.pickle_file import read_pickle
from mesh.weights.trust.signing import PrivateKey
from tests.mesh.weights.test_gguf_checkpoint import bytes_of
from tests.support.tiny_models import write_tiny_checkpoint


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    kinds = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    return {
        name: np.frombuffer(bytes_of(source), kinds[source.type]).reshape(source.shape)
        for name, source in _plain(read_pickle(path)).items()
    }


def _plain(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: source for name, source in tensors.items() if source.type in ("F32", "F16")}


def test_views_of_one_storage_are_read_where_they_lie(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).view(6, 10)
    tensors = {
        "whole": base,
        "rows": base[2:4],
        "columns": base[:, 3:5],
        "transposed": base.t(),
        "every other": base[::2, ::3],
        "turned": torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        "half": base.half()[1:],
    }
    found = arrays(saved(tmp_path / "x.bin", tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.numpy())


def test_parameters_and_ordered_dictionaries_with_attributes_are_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    state = layer.state_dict()  # an OrderedDict with an attribute _metadata
    as_parameters = OrderedDict((name, torch.nn.Parameter(tensor)) for name, tensor in state.items())
    for value in (state, as_parameters):
        found = arrays(saved(tmp_path / "x.bin", value))
        for name, tensor in state.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    protocol=st.sampled_from([2, 3, 4, 5]),
    data=st.data(),
)
def test_every_protocol_and_order_of_dimensions_gives_torchs_tensor(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], protocol: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    tensor = torch.randn(shape).permute(*order)
    path = saved(tmp_path_factory.mktemp("p") / "x.bin", {"t": tensor}, pickle_protocol=protocol)
    np.testing.assert_array_equal(arrays(path)["t"], tensor.numpy())


class Exploit:
    """What an attacker would publish: a pickle that runs a command on whoever loads it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_an_exploit_runs_nothing_and_is_named(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    path = saved(tmp_path / "x.bin", {"w": torch.ones(2), "x": Exploit(target)}, pickle_protocol=protocol)
    with pytest.raises(
        CheckpointUnsupported, match=r"its pickle asks for (posix|nt)\.system; nothing was run"
    ):
        read_pickle(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # so that the exploit is known to be a real one
    assert target.exists()


def with_program(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


@pytest.mark.parametrize(
    ("program", "asks_for"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"(S'true'\nios\nsystem\n.", "the instruction STRING|os.system"),
        (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
        (b"\x80\x02\x82\x01.", "the instruction EXT1"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x02]]b.", "the state of an object"),
        (b"\x80\x02c\xc3\xa9\xe2\x80\xae\nx\n.", "does not describe tensors"),
    ],
)
def test_only_what_describes_tensors_is_understood(tmp_path: Path, program: bytes, asks_for: str) -> None:
    with pytest.raises(CheckpointUnsupported, match=asks_for) as refusal:
        read_pickle(with_program(tmp_path / "x.bin", program))
    assert str(refusal.value).isprintable()


@settings(max_examples=300, deadline=None)
@given(program=st.binary(max_size=60))
def test_any_bytes_are_refused_or_described_and_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, program: bytes
) -> None:
    path = with_program(tmp_path_factory.getbasetemp() / "any.bin", b"\x80\x02" + program)
    try:
        read_pickle(path)
    except CheckpointUnsupported as exc:
        assert str(exc).startswith(str(path))


def _tensor_program(numel: int, start: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A pickle of one tensor ``w`` over a record of two floats, as torch writes it, with these numbers."""

    marker = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if value is marker else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (marker, start, shape, strides, False, OrderedDict())

    out = io.BytesIO()
    Pickler(out, 2).dump({"w": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize(
    ("numel", "start", "shape", "strides", "says"),
    [
        (2, 0, (2,), (1,), None),
        (3, 0, (3,), (1,), "a record of 8 bytes, expected 12"),
        (2, 1, (2,), (1,), "reaches past its storage"),
        (2, 0, (2,), (2,), "reaches past its storage"),
        (2, -1, (1,), (1,), "out of bounds"),
        (2, 0, (1 << 40, 2), (0, 1), "repeats elements"),
        (2, 0, (2,), (1, 1), "without a shape"),
        (2, 0, (2,), (-1,), "without a shape"),
    ],
)
def test_a_tensor_stays_inside_its_storage(
    tmp_path: Path, numel: int, start: int, shape: tuple[int, ...], strides: tuple[int, ...], says: str | None
) -> None:
    path = with_program(tmp_path / "x.bin", _tensor_program(numel, start, shape, strides))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", struct.pack("<2f", 1, 2))
    if says is None:
        np.testing.assert_array_equal(arrays(path)["w"], [1, 2])
        return
    with pytest.raises(CheckpointUnsupported, match=says):
        read_pickle(path)


def test_a_compressed_or_missing_storage_is_refused(tmp_path: Path) -> None:
    path = with_program(tmp_path / "x.bin", _tensor_program(2, 0, (2,), (1,)))
    with pytest.raises(CheckpointUnsupported, match="has no bytes"):
        read_pickle(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", struct.pack("<2f", 1, 2))
    with pytest.raises(CheckpointUnsupported, match="uncompressed"):
        read_pickle(path)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.bin", {"w": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointUnsupported, match="no whole zip"):
        read_pickle(path)


def test_the_format_before_torch_1_6_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.bin", {"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointUnsupported, match=r"before version 1\.6"):
        read_pickle(path)


def test_big_endian_bytes_are_refused(tmp_path: Path) -> None:
    path = with_program(tmp_path / "x.bin", b"\x80\x02}.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(CheckpointUnsupported, match="little-endian"):
        read_pickle(path)


def test_packing_an_exploit_leaves_nothing_behind(tmp_path: Path) -> None:
    directory = write_tiny_checkpoint(tmp_path / "model", num_layers=1)
    weights = {name: torch.ones(1) for name in ("a", "b")}
    (directory / "model.safetensors").unlink()
    saved(directory / "pytorch_model.bin", weights | {"c": Exploit(tmp_path / "owned")})
    with pytest.raises(CheckpointUnsupported, match="nothing was run") as refusal:
        pack_release(directory, tmp_path / "out", "Apache-2.0", None, PrivateKey.generate())
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"model"}
