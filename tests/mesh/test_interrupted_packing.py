"""A pack that was interrupted goes on after the last whole file, and ends with the very bytes of one that was not."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import CheckpointUnsupported, NotEnoughDisk, UsageError
from mesh.publishing import pack_release
from mesh.weights.releases import unfinished
from mesh.weights.shards import contents
from mesh.weights.trust.signing import PrivateKey
from tests.support.tiny_models import write_tiny_checkpoint

KEY = PrivateKey.from_seed(bytes(32))
CREATED = "2026-01-02T03:04:05Z"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", num_layers=3)


def everything_in(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


class Packing:
    """Packs into ``out``; says what it did."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source, self.out, self.said, self.packed_bytes = source, out, list[str](), 0

    def run(
        self, *, stop_after: int | None = None, error: BaseException | None = None, **options: Any
    ) -> Packing:
        self.said, self.packed_bytes = [], 0
        if stop_after is not None:
            with pytest.MonkeyPatch.context() as patch:
                record, done = unfinished.Unfinished.record, []

                def recorded(self: Any, file: str, written: Any) -> None:
                    record(self, file, written)
                    done.append(file)
                    if len(done) == stop_after:
                        raise error or KeyboardInterrupt

                patch.setattr(unfinished.Unfinished, "record", recorded)
                with pytest.raises(type(error) if error else KeyboardInterrupt):
                    self._pack(options)
        else:
            self._pack(options)
        return self

    def _pack(self, options: dict[str, Any]) -> None:
        def progress(done: int, total: int) -> None:
            self.packed_bytes = done

        wanted = {"created": CREATED, "progress": progress, "say": self.said.append, **options}
        pack_release(self.source, self.out, "Apache-2.0", None, KEY, **wanted)

    @property
    def partial(self) -> Path:
        return self.out.parent / f".{self.out.name}.packing"


@pytest.mark.parametrize("options", [{}, {"quantize": "q8_0"}, {"kind": "files"}, {"encode": True}])
def test_it_goes_on_after_the_last_whole_file(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = Packing(tiny, tmp_path / "whole").run(**options)
    packing = Packing(tiny, tmp_path / "out").run(stop_after=2, **options)
    assert not packing.out.exists()
    assert packing.said == [
        f"what is whole so far is in {packing.partial}: the same command goes on from there, or delete it"
    ]
    packing.run(**options)
    assert "files are whole" in packing.said[0]
    assert packing.packed_bytes < whole.packed_bytes
    assert everything_in(packing.out) == everything_in(whole.out)
    assert not packing.partial.exists()


def test_it_keeps_the_time_at_which_it_was_begun(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    packing = Packing(tiny, tmp_path / "out").run(stop_after=1, created=None)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    packing.run(created=None)
    assert b"2023-11-14" in unfinished_time(packing.out)


def unfinished_time(out: Path) -> bytes:
    from mesh.weights.trust.signing import TrustRoot, open_manifest

    return open_manifest((out / "manifest.dsse.json").read_bytes(), TrustRoot.of(KEY.public)).created.encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda source: {"quantize": "q8_0"}, "arguments"),
        (lambda source: {"created": "2027-01-02T03:04:05Z"}, "arguments"),
        (lambda source: {"notice": b"me too"}, "arguments"),
        (lambda source: (source / "config.json").write_bytes((source / "config.json").read_bytes() + b"\n") and {}, "source"),
        (lambda source: (source / "model.safetensors").touch() or {}, "source"),
    ],
)  # fmt: skip
def test_what_differs_starts_anew(tiny: Path, tmp_path: Path, change: Any, says: str) -> None:
    packing = Packing(tiny, tmp_path / "out").run(stop_after=3)
    options = change(tiny)
    packing.run(**options)
    assert packing.said == [f"starting anew: {says} not as in the interrupted run in {packing.partial}"]
    assert everything_in(packing.out) == everything_in(Packing(tiny, tmp_path / "again").run(**options).out)


def test_another_version_starts_anew(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing(tiny, tmp_path / "out").run(stop_after=3)
    monkeypatch.setattr("mesh.publishing.__version__", "9.9.9")
    assert "version" in packing.run().said[0]


@pytest.mark.parametrize("damage", ["shorter", "other bytes", "link", "gone"])
def test_a_kept_file_that_is_not_what_it_was_is_written_again(
    tiny: Path, tmp_path: Path, damage: str
) -> None:
    whole = Packing(tiny, tmp_path / "whole").run()
    packing = Packing(tiny, tmp_path / "out").run(stop_after=6)
    victim = packing.partial / "tiny" / "layer-00001.safetensors"
    data = victim.read_bytes()
    victim.unlink()
    if damage == "shorter":
        victim.write_bytes(data[:-1])
    elif damage == "other bytes":
        victim.write_bytes(data[:-1] + b"!")
    elif damage == "link":
        victim.symlink_to(whole.out / "tiny" / victim.name)
    packing.run()
    assert "5 files are whole" in packing.said[0]
    assert everything_in(packing.out) == everything_in(whole.out)
    assert not (packing.out / "tiny" / victim.name).is_symlink()


def test_after_a_reboot_what_is_kept_is_hashed_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Packing(tiny, tmp_path / "whole").run()
    packing = Packing(tiny, tmp_path / "out").run(stop_after=6)
    lost = packing.partial / "tiny" / "embed.safetensors"
    size = lost.stat()
    lost.write_bytes(bytes(size.st_size))  # what a power cut leaves of pages that were never written
    import os

    os.utime(lost, ns=(size.st_atime_ns, size.st_mtime_ns))
    monkeypatch.setattr(unfinished, "_boot", lambda: "another boot")
    packing.run()
    assert "5 files are whole" in packing.said[0]
    assert everything_in(packing.out) == everything_in(whole.out)


@pytest.mark.parametrize("junk", [b"", b"{", b"[]\n", b'{"schema": "other"}\n', b"\xff\n", b"null\n"])
def test_a_journal_that_says_nothing_starts_anew(tiny: Path, tmp_path: Path, junk: bytes) -> None:
    packing = Packing(tiny, tmp_path / "out").run(stop_after=3)
    (packing.partial / "packing.jsonl").write_bytes(junk)
    assert everything_in(packing.run().out) == everything_in(Packing(tiny, tmp_path / "again").run().out)


def test_a_line_that_was_cut_off_counts_for_nothing(tiny: Path, tmp_path: Path) -> None:
    packing = Packing(tiny, tmp_path / "out").run(stop_after=3)
    journal = packing.partial / "packing.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    assert "2 files are whole" in packing.run().said[0]


def test_a_full_disk_keeps_what_is_whole_and_a_bad_model_keeps_nothing(tiny: Path, tmp_path: Path) -> None:
    packing = Packing(tiny, tmp_path / "out").run(stop_after=2, error=NotEnoughDisk("full"))
    assert packing.partial.is_dir()
    packing.run(stop_after=2, error=CheckpointUnsupported("not a number"))
    assert not packing.partial.exists()
    assert packing.said == [
        f"going on where an interrupted run stopped: 2 files are whole in {packing.partial}"
    ]


def test_two_cannot_pack_the_same_at_once(tiny: Path, tmp_path: Path) -> None:
    second = Packing(tiny, tmp_path / "out")

    def while_packing(done: int, total: int) -> None:
        if not second.said:
            second.said.append("tried")
            with pytest.raises(UsageError, match="by another process"):
                pack_release(tiny, tmp_path / "out", "Apache-2.0", None, KEY)

    pack_release(tiny, tmp_path / "out", "Apache-2.0", None, KEY, progress=while_packing)
    assert second.said == ["tried"]
    assert (tmp_path / "out" / "manifest.dsse.json").is_file()


def test_a_source_that_changes_while_it_is_packed_makes_no_release(tiny: Path, tmp_path: Path) -> None:
    def touch(done: int, total: int) -> None:
        (tiny / "model.safetensors").touch()

    with pytest.raises(UsageError, match="changed while it was packed"):
        pack_release(tiny, tmp_path / "out", "Apache-2.0", None, KEY, progress=touch)
    assert list(tmp_path.iterdir()) == [tiny]


def test_a_killed_process_is_gone_on_from(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a shard: no handler runs, the journal alone knows."""
    script = (
        "import sys, time; from pathlib import Path; from mesh.weights.shards import contents\n"
        "from mesh.publishing import pack_release; from mesh.weights.trust.signing import PrivateKey\n"
        "write = contents.write_shard\n"
        "def slow(path, role, layer, *given):\n"
        "    if layer == 2:\n"
        "        path.write_bytes(b'half'); time.sleep(600)\n"
        "    return write(path, role, layer, *given)\n"
        "contents.write_shard = slow\n"
        f"pack_release(Path({str(tiny)!r}), Path({str(tmp_path / 'out')!r}), 'Apache-2.0', None,"
        f" PrivateKey.from_seed(bytes(32)), created={CREATED!r})\n"
    )
    packing = Packing(tiny, tmp_path / "out")
    journal = packing.partial / "packing.jsonl"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 30
        while (
            not journal.is_file() or journal.read_bytes().count(b"\n") < 6
        ):  # all but layer 2, and the head line
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert json.loads(journal.read_bytes().splitlines()[0])["created"] == CREATED
    packing.run()
    assert "5 files are whole" in packing.said[0]
    assert everything_in(packing.out) == everything_in(Packing(tiny, tmp_path / "whole").run().out)


def test_contents_are_written_by_name_alone() -> None:
    assert contents.shard_file(("layer", 3)) == "layer-00003.safetensors"
