"""A release while it is being packed: a directory beside the one it is to become, and a journal of what is whole in it.

    .NAME.packing/packing.jsonl     what is packed from what; then a line for every file that is whole
    .NAME.packing/<torrent name>/   the files

Whoever packs the same again goes on after the last whole file; anything that differs starts anew. When it is done the
journal goes and the directory gets its name, in one step. What a killed process wrote is in the kernel's hands, not lost;
only after a reboot, when a power cut may have eaten it, kept files are hashed again.

Knows files and hashes. Knows nothing of checkpoints or manifests.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

from mesh.errors import NotEnoughDisk, UsageError
from mesh.weights.checkpoints.checkpoint import file_chunks
from mesh.weights.shards.encoding import SUFFIX, twin_file
from mesh.weights.shards.merkle import RootHasher
from mesh.weights.shards.shard import WrittenShard

SCHEMA = "llama-mesh.packing/1"
JOURNAL = "packing.jsonl"

Wish = Mapping[str, Any]  # what is packed from what: JSON, by what people call it


@dataclass(frozen=True, slots=True)
class Unfinished:
    directory: Path
    created: str  # when it was begun
    kept: Mapping[str, WrittenShard]  # by file name: whole since an earlier run
    _journal: BufferedRandom
    files: Path  # where the release's files go

    def record(self, file: str, written: WrittenShard) -> None:
        """``file`` is whole, and its twin; a run after this one may keep them."""
        _append(self._journal, _to_line(file, written, self.files))


@contextmanager
def unfinished(
    out: Path, name: str, wish: Wish, created: str, say: Callable[[str], None]
) -> Iterator[Unfinished]:
    """Becomes ``out`` when the block ends well. After an interruption or on a full disk it stays, if anything is whole in
    it, and ``say`` tells how to go on; after anything else it goes. Raises UsageError if another process is at it."""
    directory = out.absolute().parent / f".{out.name}.packing"  # a sibling: renaming is atomic
    directory.mkdir(exist_ok=True)
    with (directory / JOURNAL).open("a+b") as journal:
        _lock(journal, directory, out)
        found = _resumed(directory, name, journal, wish, say) or _begun(
            Unfinished(directory, created, {}, journal, directory / name), wish
        )
        try:
            yield found
            (directory / JOURNAL).unlink()
            directory.rename(out)
        except BaseException as exc:
            if _is_worth_keeping(exc, directory):
                say(
                    f"what is whole so far is in {directory}: the same command goes on from there, or delete it"
                )
            else:
                shutil.rmtree(directory)
            raise


def _lock(journal: BufferedRandom, directory: Path, out: Path) -> None:
    """The kernel lets go when the process ends, however it ends."""
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise UsageError(
            f"{out} is being packed by another process; wait for it, or choose another --out"
        ) from exc
    # What is kept will be signed: nobody else may have put it there.
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise UsageError(f"{directory} is not yours; remove it, or choose another --out")


def _resumed(
    directory: Path, name: str, journal: BufferedRandom, wish: Wish, say: Callable[[str], None]
) -> Unfinished | None:
    """None if there is nothing to go on from; the directory is then as new."""
    head, lines = _read(journal)
    if head.get("schema") != SCHEMA or head.get("wish") != wish:
        if head:
            before = dict(head.get("wish") or {})
            differing = " and ".join(sorted(key for key in wish if before.get(key) != wish[key]))
            say(f"starting anew: {differing or 'the journal'} not as in the interrupted run in {directory}")
        _clear(directory, keep=set())
        return None
    resumed = Unfinished(directory, str(head["created"]), {}, journal, directory / name)
    kept = {}
    for file, line in {line["file"]: line for line in lines}.items():
        if (written := _still_whole(line, resumed.files)) is not None:
            kept[file] = written
            if _to_line(file, written, resumed.files) != line:
                resumed.record(file, written)  # the machine was started anew; it was hashed
    _clear(
        directory,
        keep={path for file, written in kept.items() for path, _ in _parts(file, written, resumed.files)},
    )
    resumed.files.mkdir(exist_ok=True)
    if kept:
        say(f"going on where an interrupted run stopped: {len(kept)} files are whole in {directory}")
    return replace(resumed, kept=kept)


def _clear(directory: Path, keep: Collection[Path]) -> None:
    """Remove every file but those and the journal: it was cut off in the middle, or is of another wish."""
    for path in directory.rglob("*"):
        if path not in keep and path != directory / JOURNAL and (path.is_symlink() or not path.is_dir()):
            path.unlink()
    if not keep:
        for path in directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)


def _begun(unfinished: Unfinished, wish: Wish) -> Unfinished:
    unfinished.files.mkdir()
    unfinished._journal.truncate(0)
    _append(unfinished._journal, {"schema": SCHEMA, "wish": wish, "created": unfinished.created})
    return unfinished


def _append(journal: BufferedRandom, line: Mapping[str, Any]) -> None:
    journal.write(json.dumps(line, sort_keys=True).encode() + b"\n")
    journal.flush()


def _read(journal: BufferedRandom) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first line, and those after it up to the first that is not whole, which is cut off."""
    journal.seek(0)
    parsed: list[dict[str, Any]] = []
    length = 0
    for line in journal.read().splitlines(keepends=True):
        try:
            parsed.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            break
        length += len(line)
    journal.truncate(length)
    return (parsed[0], parsed[1:]) if parsed else ({}, [])


def _still_whole(line: Mapping[str, Any], files: Path) -> WrittenShard | None:
    file, whole = line["file"], [_from_json(part) for part in line["parts"]]
    written = replace(whole[0], twin=whole[1] if len(whole) > 1 else None)
    parts = _parts(file, written, files)
    if any(
        path.is_symlink() or not path.is_file() or path.stat().st_size != part.size for path, part in parts
    ):
        return None
    if _to_line(file, written, files) == line or all(
        _root(path, part.size) == part.root for path, part in parts
    ):
        return written
    return None


def _parts(file: str, written: WrittenShard, files: Path) -> list[tuple[Path, WrittenShard]]:
    """Where the file lies, and its twin."""
    parts = [(files / file, written)]
    if written.twin is not None:
        parts.append((files.with_name(files.name + SUFFIX) / twin_file(file), written.twin))
    return parts


def _to_line(file: str, written: WrittenShard, files: Path) -> dict[str, Any]:
    return {"file": file, "parts": [_to_json(path, part) for path, part in _parts(file, written, files)]}


def _to_json(path: Path, part: WrittenShard) -> dict[str, Any]:
    return {
        "size": part.size,
        "root": part.root.hex(),
        "piece_layer": part.piece_layer.hex(),
        "data_root": None if part.data_root is None else part.data_root.hex(),
        "on_disk": [path.stat().st_mtime_ns, _boot()],
    }


def _from_json(part: Mapping[str, Any]) -> WrittenShard:
    data_root = part["data_root"]
    return WrittenShard(
        part["size"],
        bytes.fromhex(part["root"]),
        bytes.fromhex(part["piece_layer"]),
        None if data_root is None else bytes.fromhex(data_root),
    )


def _boot() -> str | None:
    """What changes when the machine starts; None where that cannot be told, and nothing equals it then."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"


def _root(path: Path, size: int) -> bytes:
    hasher = RootHasher()
    for chunk in file_chunks(path, 0, size):
        hasher.update(chunk)
    return hasher.root() if size else bytes(32)


def _is_worth_keeping(exc: BaseException, directory: Path) -> bool:
    if isinstance(exc, Exception) and not isinstance(exc, (OSError, NotEnoughDisk)):
        return False
    return (directory / JOURNAL).is_file() and (directory / JOURNAL).read_bytes().count(b"\n") > 1
