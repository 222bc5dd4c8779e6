"""The releases of a store: which they are, which are pinned, in use, or may go.

    STORE/blobs/<root>                      verified shards (``store.py``)
    STORE/releases/<release id>/            manifest.dsse.json, release.torrent; "pinned" if it is; "used", touched at use
    STORE/downloads/<release id>/           where libtorrent writes; what is complete there shares its bytes with the blobs
    STORE/quota                             bytes, if the user set a bound

Several processes share a store. Whoever fetches, loads or seeds a release is inside ``hold``, and nothing of that
release is removed meanwhile; the kernel ends a hold with its process.

    with Holdings(store).hold(envelope, torrent, manifest, refs) as save_path:
        report = await fetch(session, torrent, manifest, refs, save_path, peers, store=store)

Knows manifests, files and locks. Knows nothing of torrents, peers or trust: ``hold`` gets a manifest that was verified
and keeps its bytes under their digest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.clock import Clock, SystemClock
from mesh.errors import IntegrityError, NotEnoughDisk, NotFound, UsageError
from mesh.locking import is_locked, locked_file
from mesh.sizes import format_size
from mesh.weights.disk import naming_full_disk
from mesh.weights.releases.reclaiming import Download, Holding, Reclaim, plan_reclaim, plan_removal
from mesh.weights.releases.release import MANIFEST_FILE, TORRENT_FILE, read_envelope
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import peek_manifest

_RELEASE_ID = re.compile(r"[0-9a-f]{64}")
_ID_PREFIX = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class HeldRelease:
    """``directory`` holds its manifest and torrent; ``held`` are the shards whose blobs the store has."""

    directory: Path
    release_id: str
    manifest: Manifest | None  # None: what lies there is not what was put there
    held: frozenset[ShardRef]
    is_pinned: bool
    is_busy: bool
    last_used: float  # wall seconds

    @property
    def name(self) -> str:
        return self.manifest.name if self.manifest is not None else "(damaged)"

    @property
    def held_bytes(self) -> int:
        return sum(ref.size for ref in self.held)


class Holdings:
    """``quota_bytes`` overrules the bound that the store itself remembers."""

    def __init__(
        self, store: ShardStore, *, quota_bytes: int | None = None, clock: Clock | None = None
    ) -> None:
        self.store = store
        self._quota_bytes = quota_bytes
        self._clock = clock or SystemClock()
        self._releases = store.directory / "releases"
        self._downloads = store.directory / "downloads"
        self._quota = store.directory / "quota"
        self._mutex = store.directory / "lock"  # held for as long as it takes to change what is held
        for made in (self._releases, self._downloads):
            made.mkdir(exist_ok=True)

    # -- what is there ------------------------------------------------------------------------------------------------

    def releases(self) -> tuple[HeldRelease, ...]:
        """By name, then id."""
        found = [self._read(entry) for entry in self._releases.iterdir() if _RELEASE_ID.fullmatch(entry.name)]
        return tuple(sorted(found, key=lambda held: (held.name, held.release_id)))

    def find(self, text: str) -> HeldRelease:
        """By name, or by eight or more digits of the id. Raises NotFound, and UsageError for a text that fits two."""
        by_id = bool(_ID_PREFIX.fullmatch(text))
        fitting = [
            held
            for held in self.releases()
            if held.name == text or (by_id and held.release_id.startswith(text))
        ]
        if not fitting:
            raise NotFound(f"store {self.store.directory} has no release {text!r}; `mesh ls` lists them")
        if len(fitting) > 1:
            ids = ", ".join(held.release_id[:16] for held in fitting)
            raise UsageError(f"release {text!r} is there {len(fitting)} times: say which by its id, {ids}")
        return fitting[0]

    # -- fetching and using -------------------------------------------------------------------------------------------

    @contextmanager
    def hold(
        self, envelope: bytes, torrent: bytes, manifest: Manifest, refs: Collection[ShardRef]
    ) -> Iterator[Path]:
        """Register a verified release and use it; yields the directory to fetch ``refs`` into.

        Raises NotEnoughDisk when what is missing of ``refs`` does not fit under the quota; then nothing has changed.
        """
        directory = self._releases / manifest.release_id
        save_path = self._downloads / manifest.release_id
        with ExitStack() as held:
            with locked_file(self._mutex):
                self._require_room(refs, save_path)
                if not directory.is_dir():
                    self._register(directory, envelope, torrent)
                # Under the mutex: who reclaims holds it too, so a release that is not busy cannot become so.
                held.enter_context(locked_file(directory / "lock", shared=True))
            save_path.mkdir(exist_ok=True)
            self._touch(directory)
            try:
                yield save_path
            finally:
                self._touch(directory)

    @contextmanager
    def using(self, release: HeldRelease) -> Iterator[None]:
        """Keep what is held of a release while it is read; that is no use of it which ``last_used`` would tell."""
        with ExitStack() as held:
            with locked_file(self._mutex):
                if not release.directory.is_dir():
                    raise NotFound(f"release {release.name} was removed from the store a moment ago")
                held.enter_context(locked_file(release.directory / "lock", shared=True))
            yield

    def pin(self, release: HeldRelease) -> None:
        (release.directory / "pinned").touch()

    def unpin(self, release: HeldRelease) -> None:
        (release.directory / "pinned").unlink(missing_ok=True)

    # -- how much ---------------------------------------------------------------------------------------------------

    def quota(self) -> int | None:
        """How many bytes the store may take; None: no bound of its own."""
        if self._quota_bytes is not None:
            return self._quota_bytes
        try:
            return int(self._quota.read_text())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise UsageError(
                f"{self._quota}: expected a number of bytes; set it with `mesh gc --quota SIZE`"
            ) from exc

    def set_quota(self, num_bytes: int | None) -> None:
        if num_bytes is None:
            self._quota.unlink(missing_ok=True)
            return
        written = self.store.aside("quota")
        written.write_text(f"{num_bytes}\n")
        written.replace(self._quota)

    def used_bytes(self) -> int:
        """Blobs, and what unfinished downloads take besides them."""
        return sum(self.store.sizes().values()) + sum(load.num_bytes for load in self._loads())

    # -- giving back ------------------------------------------------------------------------------------------------

    def reclaim(self, *, free_bytes: int = 0, dry_run: bool = False) -> Reclaim:
        """Remove what no release names, then releases until the quota has ``free_bytes`` of room.

        Raises IntegrityError while a release is damaged: nobody can say which blobs it names.
        """
        with locked_file(self._mutex):
            quota = self.quota()
            plan = self._plan(None if quota is None else max(0, quota - free_bytes))
            if not dry_run:
                self._carry_out(plan)
            return plan

    def remove(self, release: HeldRelease) -> Reclaim:
        """Forget a release and the blobs only it names. Raises UsageError for one that is pinned or in use."""
        with locked_file(self._mutex):
            now = self._read(release.directory)
            if now.is_pinned:
                raise UsageError(f"release {now.name} is pinned; `mesh unpin {now.name}` first")
            if now.is_busy:
                raise UsageError(f"release {now.name} is in use; stop what fetches, serves or seeds it first")
            plan = plan_removal(self.store.sizes(), self._holdings(), self._loads(), now.release_id)
            self._carry_out(plan)
            return plan

    def condemn(self, manifest: Manifest, refs: Collection[ShardRef]) -> None:
        """Delete the bytes of these shards for good: blobs, whatever shares them, half-made downloads, encoded twins."""
        save_path = self._downloads / manifest.release_id
        files = {ref.file for ref in refs}
        for ref in refs:
            self.store.purge(ref)
            (save_path / manifest.torrent.name / ref.file).unlink(missing_ok=True)
        for encoding in manifest.encodings:
            for twin in encoding.shards:
                if twin.of in files:
                    (save_path / encoding.torrent.name / twin.file).unlink(missing_ok=True)

    def _plan(self, max_bytes: int | None) -> Reclaim:
        if damaged := [held for held in self.releases() if held.manifest is None]:
            raise IntegrityError(
                f"{damaged[0].directory} is damaged, so it is unknown which shards it names;"
                f" `mesh rm {damaged[0].release_id[:16]}` and fetch it again"
            )
        return plan_reclaim(
            self.store.sizes(),
            self._holdings(),
            self._loads(),
            now=self._clock.wall(),
            max_bytes=max_bytes,
        )

    def _carry_out(self, plan: Reclaim) -> None:
        """Registrations go first: whatever a kill leaves behind is then named by nobody and goes with the next gc."""
        for release_id in plan.releases:
            aside = self.store.aside(release_id)
            with suppress(FileNotFoundError):
                (self._releases / release_id).rename(aside)
                shutil.rmtree(aside)
        for release_id in plan.downloads:
            shutil.rmtree(self._downloads / release_id, ignore_errors=True)
        for root in plan.roots:
            self.store.remove_root(root)

    # -- the files ----------------------------------------------------------------------------------------------------

    def _require_room(self, refs: Collection[ShardRef], save_path: Path) -> None:
        quota = self.quota()
        if quota is None:
            return
        blobs = self.store.sizes()
        here = sum(load.num_bytes for load in self._loads() if load.release_id == save_path.name)
        missing = max(0, sum({ref.root: ref.size for ref in refs if ref.root not in blobs}.values()) - here)
        used = self.used_bytes()
        if not missing or used + missing <= quota:
            return
        need = f"{missing} bytes ({format_size(missing)}) to fetch"
        plan = self._plan(max(0, quota - missing))
        advice = (
            f"`mesh gc --free {missing}` would make room"
            if missing <= quota and not plan.excess_bytes
            else f"`mesh gc --free {missing}` could free {format_size(plan.num_bytes)}; raise the quota or unpin releases"
        )
        raise NotEnoughDisk(
            f"store {self.store.directory}: {need}, {format_size(max(0, quota - used))} left of its quota of"
            f" {format_size(quota)}; {advice}"
        )

    def _register(self, directory: Path, envelope: bytes, torrent: bytes) -> None:
        aside = self.store.aside(directory.name)
        with naming_full_disk(aside):
            aside.mkdir()
            (aside / MANIFEST_FILE).write_bytes(envelope)
            (aside / TORRENT_FILE).write_bytes(torrent)
            aside.rename(directory)  # whole or not at all

    def _read(self, directory: Path) -> HeldRelease:
        manifest = None
        with suppress(NotFound, IntegrityError):
            read = peek_manifest(read_envelope(directory / MANIFEST_FILE))
            manifest = read if read.release_id == directory.name else None
        refs = manifest.shards if manifest is not None else ()
        return HeldRelease(
            directory=directory,
            release_id=directory.name,
            manifest=manifest,
            held=frozenset(ref for ref in refs if self.store.path(ref) is not None),
            is_pinned=(directory / "pinned").exists(),
            is_busy=is_locked(directory / "lock"),
            last_used=_modified(directory / "used"),
        )

    def _holdings(self) -> list[Holding]:
        return [
            Holding(
                held.release_id,
                frozenset(ref.root for ref in held.manifest.shards) if held.manifest else frozenset(),
                held.last_used,
                held.is_pinned,
                held.is_busy,
            )
            for held in self.releases()
        ]

    def _loads(self) -> list[Download]:
        return [_measure(entry) for entry in self._downloads.iterdir() if entry.is_dir()]

    def _touch(self, directory: Path) -> None:
        with suppress(FileNotFoundError):
            (directory / "used").touch()
            now = self._clock.wall()
            os.utime(directory / "used", (now, now))


def _measure(save_path: Path) -> Download:
    num_bytes, last = 0, _modified(save_path)
    for file in save_path.rglob("*"):
        with suppress(FileNotFoundError):
            stat = file.lstat()
            last = max(last, stat.st_mtime)
            if file.is_file() and stat.st_nlink == 1:  # otherwise a blob's second name
                num_bytes += stat.st_blocks * 512
    return Download(save_path.name, num_bytes, last)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
