"""Content-addressed shard store.

Holds verified bytes under their root: ``blobs/<root>``, read-only, shared by every release that names the shard, kept
across restarts. A blob is in the store only after its bytes were hashed *there*, and it appears in one step, so what
``path`` returns was right when it came in; whoever loads it hashes again while reading (``shard.read_shard``).

Knows files and hashes. Knows nothing of torrents, layers or tensors, nor of which releases name a blob
(``holdings.py``).
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError, ManifestInvalid, NotFound
from mesh.weights.disk import naming_full_disk
from mesh.weights.shards.shard import check_shard
from mesh.weights.trust.manifest import ShardRef

logger = logging.getLogger(__name__)

_ROOT = re.compile(r"[0-9a-f]{64}")
_ABANDONED_SECONDS = 24 * 3600.0  # no adoption takes that long: its process was killed
# Another file system, one without hard links, or a file that took all the links it can.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}


class ShardStore:
    """A directory of blobs. Several processes may share it."""

    def __init__(self, directory: Path, clock: Clock | None = None) -> None:
        self.directory = directory
        self._blobs = directory / "blobs"
        self._incoming = directory / "incoming"  # same file system: a rename makes a blob visible
        for made in (self._blobs, self._incoming):
            made.mkdir(parents=True, exist_ok=True)
        self._sweep((clock or SystemClock()).wall())

    def path(self, ref: ShardRef) -> Path | None:
        """The blob of ``ref`` if it is held. Its size is right; its bytes were when it was adopted."""
        blob = self._blob(ref)
        try:
            return blob if blob.stat().st_size == ref.size else None
        except FileNotFoundError:
            return None

    def blob(self, ref: ShardRef) -> Path | None:
        """Whatever lies where the blob of ``ref`` belongs, for whoever is about to check it."""
        blob = self._blob(ref)
        return blob if os.path.lexists(blob) else None

    def held(self) -> frozenset[str]:
        """Roots (hex) of all blobs."""
        return frozenset(blob.name for blob in self._blobs.iterdir() if _ROOT.fullmatch(blob.name))

    def sizes(self) -> dict[str, int]:
        """Bytes by root (hex) of all blobs."""
        found = {}
        for root in self.held():
            with suppress(FileNotFoundError):  # another process may remove it
                found[root] = (self._blobs / root).stat().st_size
        return found

    def adopt(self, file: Path, ref: ShardRef) -> Path:
        """Take ``file`` in: hash it, make it read-only, give it its root for a name. Returns the blob.

        ``file`` stays where it is and shares the blob's bytes where the file system can. A blob already held is
        replaced, so adopting heals a rotten one. Raises NotFound, ShardCorrupt, NotEnoughDisk; the store is then as
        it was.
        """
        blob = self._blob(ref)
        with self._staged(file, blob.name) as staged:
            # Our own name for the bytes is what is hashed: replacing `file` now changes nothing.
            check_shard(staged, ref)
            staged.chmod(0o444)
            _sync(staged)
            staged.replace(blob)
        _sync(self._blobs)
        logger.info("shard adopted", extra={"file": ref.file, "root": ref.root, "bytes": ref.size})
        return blob

    def create(self, ref: ShardRef, write: Callable[[Path], None]) -> Path:
        """Let ``write`` make the blob at a new path of ours; it must raise unless it wrote exactly ``ref`` there.

        For whoever hashes bytes while writing them, so that nobody has to read them again. The store is as it was when
        ``write`` raises.
        """
        blob = self._blob(ref)
        staged = self._incoming / f"{blob.name}.{secrets.token_hex(8)}"
        try:
            with naming_full_disk(staged):
                write(staged)
                staged.chmod(0o444)
                _sync(staged)
                staged.replace(blob)
        finally:
            staged.unlink(missing_ok=True)
        _sync(self._blobs)
        logger.info("shard made", extra={"file": ref.file, "root": ref.root, "bytes": ref.size})
        return blob

    def link(self, ref: ShardRef, file: Path) -> bool:
        """Put a held blob at ``file`` after hashing it; False when it is not held. A rotten blob is dropped."""
        blob = self.path(ref)
        if blob is None:
            return False
        try:
            check_shard(blob, ref)
        except IntegrityError as exc:
            logger.warning("dropping a rotten blob", extra={"root": ref.root, "reason": str(exc)})
            if file.is_file() and file.samefile(blob):
                file.unlink()  # the same rotten bytes; a downloader must not repair them under two names
            self.remove(ref)
            return False
        if not (file.is_file() and file.samefile(blob)):
            with self._staged(blob, blob.name) as staged:
                _move(staged, file)
        return True

    def remove(self, ref: ShardRef) -> None:
        """Forget a blob; files that were linked to it keep their bytes."""
        self._blob(ref).unlink(missing_ok=True)

    def purge(self, ref: ShardRef) -> None:
        """Forget a blob together with every file under this directory that shares its bytes: downloads are hard links."""
        blob = self._blob(ref)
        try:
            same = blob.stat()
        except FileNotFoundError:
            return
        for path in self._blobs.parent.rglob("*"):
            if path.is_file() and not path.is_symlink() and os.path.samestat(path.stat(), same):
                path.unlink(missing_ok=True)

    def remove_root(self, root: str) -> None:
        """Forget a blob by its address."""
        assert _ROOT.fullmatch(root), root
        (self._blobs / root).unlink(missing_ok=True)

    def aside(self, name: str) -> Path:
        """A free name on the blobs' file system; what is left there is swept a day later."""
        return self._incoming / f"{name}.{secrets.token_hex(8)}"

    def _blob(self, ref: ShardRef) -> Path:
        if not _ROOT.fullmatch(ref.root):
            raise ManifestInvalid(f"shard {ref.file}: root {ref.root[:80]!r} is not 64 hex digits")
        return self._blobs / ref.root

    @contextmanager
    def _staged(self, file: Path, name: str) -> Iterator[Path]:
        """A name of our own for the bytes of ``file``; gone afterwards unless it was moved."""
        staged = self.aside(name)
        try:
            with naming_full_disk(staged):
                _link_or_copy(file, staged)
                yield staged
        finally:
            staged.unlink(missing_ok=True)

    def _sweep(self, now: float) -> None:
        """Remove what a killed process left behind; ctime is when it was linked or last written."""
        for left in self._incoming.iterdir():
            with suppress(FileNotFoundError):  # another process sweeps too
                if now - left.stat().st_ctime > _ABANDONED_SECONDS:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def _link_or_copy(file: Path, target: Path) -> None:
    try:
        real = file.resolve(strict=True)  # a link to a symlink would follow wherever that points tomorrow
    except FileNotFoundError as exc:
        raise NotFound(f"{file}: no such file") from exc
    try:
        os.link(real, target)
    except OSError as exc:
        if exc.errno not in _NO_LINK:
            raise
        shutil.copyfile(real, target)


def _move(staged: Path, file: Path) -> None:
    try:
        staged.replace(file)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        shutil.copyfile(staged, file)


def _sync(path: Path) -> None:
    """Make the name and the bytes survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
