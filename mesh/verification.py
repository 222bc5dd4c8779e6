"""Verify: everything a signature promises about a release, step by step, each byte read and hashed once.

    verification = verify_release(Release.open(path, trust), trust)
    verification.exit_code, verification.steps, verification.shards

The steps, in order; each ends as passed, failed, or not checked and why:

    1 files        no symbolic link, pipe or device lies in the release
    2 signature    the manifest's exact bytes were signed      (``Release.open`` refuses whatever was not:
    3 trust        by a key that is believed, of a publisher    there is then nothing to verify)
                   whose catalog lists the manifest today
    4 expiry       the publisher still stands by it
    5 licence      text, notice and policy in aux are those the manifest names; every shard carries the licence
    6 revocation   the catalog's revocation list is fresh and forbids nothing of what is here
    7 torrent      the .torrent moves these shards and nothing else, piece layers included
    8 shards       every shard that is held hashes to its root and has a sound header
    - twins        of a release with encoded twins: each hashes to its root; with ``deep``, to its shard's when decoded
    9 contents     with ``deep``: tensors fit the model, all numbers are finite, tokenizer and template can be read

A directory holds a whole release, a store (``StoredRelease``) often a part: what it lacks is said, and counts as missing
only where the release was to be ``complete`` or nothing of it is there.

Pure but for reading the files of the release. Knows nothing of command lines.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from mesh.belief import RevocationCheck
from mesh.errors import IntegrityError, LicenseRefused, MeshError, NotFound, ShardCorrupt
from mesh.swarm.metainfo import check_torrent
from mesh.weights.checkpoints.layout import tensor_shapes
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import Shard, read_shard
from mesh.weights.shards.shard_check import CheckedShard, Scan, check_shards
from mesh.weights.shards.tensor_file import ShardHeader
from mesh.weights.shards.tensor_types import WEIGHT_TYPES
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.signing import TrustRoot, signer_of

# In aux, and the field of the manifest that says what it is
LICENSE_FILES = (("LICENSE", "text_digest"), ("NOTICE", "notice_digest"), ("USE_POLICY", "policy_digest"))
_REPACK = "its publisher must pack it again"


class Outcome(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    outcome: Outcome
    detail: str  # what was found, or why it was not looked at
    problem: MeshError | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. ``shards`` are in the manifest's order, each with its problem or None."""

    manifest: Manifest
    signer: str
    steps: tuple[Step, ...]
    shards: tuple[CheckedShard, ...]
    unlisted_files: tuple[str, ...]

    @property
    def held(self) -> tuple[ShardRef, ...]:
        return tuple(shard.ref for shard in self.shards if shard.is_held)

    @property
    def problems(self) -> dict[ShardRef, MeshError]:
        return {shard.ref: shard.problem for shard in self.shards if shard.problem is not None}

    @property
    def findings(self) -> tuple[MeshError, ...]:
        return (*(step.problem for step in self.steps if step.problem), *self.problems.values())

    @property
    def ok(self) -> bool:
        return not self.findings

    def verdict(self) -> MeshError | None:
        """One error that names every failure: a lie is worse than a broken rule, and that worse than a gap."""
        if self.ok:
            return None
        kind = next(k for k in _WORST_FIRST if any(isinstance(found, k) for found in self.findings))
        parts = [str(step.problem) for step in self.steps if step.problem]
        if problems := self.problems:
            parts.append(self._describe_problems(problems))
        return kind("; ".join(parts))

    def _describe_problems(self, problems: dict[ShardRef, MeshError]) -> str:
        if not self.held:
            return f"none of its {len(self.shards)} shards is held; fetch them"
        state = "missing" if all(isinstance(p, NotFound) for p in problems.values()) else "bad"
        again = "" if state == "missing" else " again"
        names = ", ".join(ref.file for ref in problems)
        return f"{len(problems)} of {len(self.shards)} shards are {state}: {names}; fetch them{again}"


_WORST_FIRST: tuple[type[MeshError], ...] = (IntegrityError, LicenseRefused, NotFound, MeshError)


def verify_release(
    release: Release,
    trust: TrustRoot,
    *,
    deep: bool = False,
    complete: bool = False,
    now: datetime | None = None,
    trusted: str | None = None,
    acceptance: str | None = None,
    revocation: RevocationCheck | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Every check there is; a failed one does not stop the next. ``progress(done, total)`` in bytes.

    With ``complete`` a shard that is not held is a problem. ``trusted`` says why the signer is believed, if not for its
    key alone; ``acceptance`` who accepted the licence, as far as that is on record here.
    """
    manifest = release.manifest
    signer = signer_of(release.envelope, trust).key_id
    shards, aux = _check_all_shards(release, deep, complete, progress)
    twins = _twins_step(release, deep, progress)
    steps = (
        _files_step(release),
        Step("signature", Outcome.PASSED, f"Ed25519 over the manifest's exact bytes, release {manifest.release_id}"),
        Step("trust", Outcome.PASSED, f"signed by {signer}" + (f", {trusted}" if trusted else "")),
        _expiry_step(manifest, now or datetime.now(UTC)),
        _license_step(manifest, aux, f"aux is {_where(shards[-1])}", acceptance),
        _revocation_step(release, revocation),
        _torrent_step(release),
        *twins,
        _contents_step(manifest, shards, aux, deep),
    )  # fmt: skip
    return Verification(manifest, signer, steps, shards, release.unlisted_files())


def problems_of(release: Release) -> dict[ShardRef, MeshError]:
    """What is wrong with which shard, and nothing else."""
    checked, _ = _check_all_shards(release, False, False, progress=lambda done, total: None)
    return {shard.ref: shard.problem for shard in checked if shard.problem is not None}


def _check_all_shards(
    release: Release, deep: bool, complete: bool, progress: Callable[[int, int], None]
) -> tuple[tuple[CheckedShard, ...], Shard | None]:
    """Each shard once: the small aux into memory, since licence and tokenizer are in it; the others as they pass."""
    manifest, done = release.manifest, 0
    held = [ref for ref in manifest.shards if release.holds(ref)]
    total = sum(ref.size for ref in held)

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    scan: Scan | None = None
    if deep:
        from mesh.weights.shards.tensor_scan import find_infinite  # numpy, which nothing else here needs

        scan = find_infinite
    weights = [(release.shard_path(ref), ref) for ref in held if ref.role != "aux"]
    checked = {shard.ref: shard for shard in check_shards(weights, on_bytes, scan=scan)}
    aux = None
    if (aux_ref := manifest.shards[-1]) in held:  # aux is the last of every release
        header, problem = None, None
        try:
            aux = read_shard(release.shard_path(aux_ref), aux_ref)
            header = ShardHeader(aux.role, aux.layer, aux.license_digest, aux.tensors, 0)
            on_bytes(aux_ref.size)
        except MeshError as exc:
            problem = exc
        checked[aux_ref] = CheckedShard(aux_ref, header, problem)
    lacking = complete or not held  # where nothing is held, nothing would be verified
    shards = (checked.get(ref) or _not_held(ref, is_problem=lacking) for ref in manifest.shards)
    return tuple(_with_its_license(shard, manifest) for shard in shards), aux


def _not_held(ref: ShardRef, *, is_problem: bool) -> CheckedShard:
    problem = NotFound(f"shard {ref.file}: not held; fetch it") if is_problem else None
    return CheckedShard(ref, None, problem, is_held=False)


def _with_its_license(shard: CheckedShard, manifest: Manifest) -> CheckedShard:
    """The licence is in the header and so in the address: a shard of another one is another shard."""
    if shard.header is None or shard.header.license_digest == manifest.license.text_digest:
        return shard
    problem = ShardCorrupt(
        shard.ref.file,
        f"license {manifest.license.text_digest}",
        f"license {shard.header.license_digest}",
        _REPACK,
    )
    return CheckedShard(shard.ref, shard.header, problem)


def _files_step(release: Release) -> Step:
    """Whoever seeds or loads the release must not be led out of it, or wait for a pipe."""
    odd = []
    for directory, names, files in os.walk(release.directory):
        for name in (*names, *files):
            path = Path(directory, name)
            if not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither file nor directory"
                odd.append(f"{path.relative_to(release.directory)} is {kind}")
    if odd:
        return _failed("files", IntegrityError(f"{release.directory}: {', '.join(sorted(odd))}; remove it"))
    return Step("files", Outcome.PASSED, "plain files and directories only")


def _expiry_step(manifest: Manifest, now: datetime) -> Step:
    if manifest.expires is None:
        return Step("expiry", Outcome.PASSED, "the manifest does not expire")
    if now >= datetime.fromisoformat(manifest.expires):
        return _failed(
            "expiry",
            LicenseRefused(
                f"the manifest expired {manifest.expires}; ask its publisher for one that is current"
            ),
        )
    return Step("expiry", Outcome.PASSED, f"until {manifest.expires}")


def _where(shard: CheckedShard) -> str:
    return "not what was signed" if shard.is_held else "not held"


def _license_step(manifest: Manifest, aux: Shard | None, otherwise: str, acceptance: str | None) -> Step:
    license_ = manifest.license
    told = license_.id
    if acceptance is not None:
        told += f", {acceptance}"
    elif license_.acceptance_required:
        told += ", to be accepted; no acceptance is on record here"
    if aux is None:
        return Step(
            "licence",
            Outcome.NOT_CHECKED,
            f"{told}; the texts are not looked at, since {otherwise}",
        )
    found = []
    for name, field in LICENSE_FILES:
        wanted = getattr(license_, field)
        if wanted is None:
            continue
        data = aux.bytes_of(name) if name in aux.tensors else None
        actual = "none" if data is None else hashlib.sha256(data).hexdigest()
        if actual != wanted:
            return _failed(
                "licence", ShardCorrupt(aux.role, f"{name} with SHA-256 {wanted}", actual, _REPACK)
            )
        found.append(f"{name} {actual[:16]}")
    return Step("licence", Outcome.PASSED, f"{told}: {', '.join(found)}")


def _revocation_step(release: Release, check: RevocationCheck | None) -> Step:
    if check is None:
        return Step("revocation", Outcome.NOT_CHECKED, "no catalog given")
    try:
        here = [ref for ref in release.manifest.shards if release.holds(ref)] or release.manifest.shards
        return Step("revocation", Outcome.PASSED, check(release.manifest, here))
    except MeshError as exc:
        return _failed("revocation", exc)


def _torrent_step(release: Release) -> Step:
    try:
        check_torrent(release.torrent, release.manifest)
    except MeshError as exc:
        return _failed("torrent", exc)
    return Step(
        "torrent", Outcome.PASSED, f"infohash {release.manifest.torrent.infohash}, piece layers included"
    )


def _twins_step(release: Release, deep: bool, progress: Callable[[int, int], None]) -> tuple[Step, ...]:
    """Nothing for the releases, most of them, that have none."""
    if not release.manifest.encodings:
        return ()
    if release.twin_torrent is None:
        return (Step("twins", Outcome.NOT_CHECKED, "the encoded shards are not here"),)
    from mesh.swarm.twins import check_twin_torrent, readable_encoding  # numpy again
    from mesh.weights.shards.twin_check import verify_twins

    encoding = readable_encoding(release.manifest)
    if encoding is None:
        return (Step("twins", Outcome.NOT_CHECKED, "of a codec that this version does not know"),)
    try:
        check_twin_torrent(release.twin_torrent, encoding, release.manifest)
    except MeshError as exc:
        return (_failed("twins", exc),)
    if problems := verify_twins(release, deep=deep, progress=progress):
        are_missing = all(isinstance(problem, NotFound) for problem in problems.values())
        text = "; ".join(str(problem) for problem in problems.values())
        return (_failed("twins", NotFound(text) if are_missing else IntegrityError(text)),)
    what = "decode to their shards" if deep else "hash to their roots"
    return (Step("twins", Outcome.PASSED, f"{len(encoding.shards)} encoded shards {what}"),)


def _contents_step(manifest: Manifest, shards: Sequence[CheckedShard], aux: Shard | None, deep: bool) -> Step:
    if not deep:
        return Step("contents", Outcome.NOT_CHECKED, "only with --deep")
    if manifest.model is None:
        return Step("contents", Outcome.PASSED, "files, of which nothing is promised but their bytes")
    try:
        for shard in shards:
            if shard.header is not None and shard.ref.role != "aux":
                check_tensors(manifest, shard.ref, shard.header)
            if shard.remarks:
                raise ShardCorrupt(
                    shard.ref.file,
                    "finite numbers",
                    f"infinity or NaN in {', '.join(shard.remarks[:5])}",
                    _REPACK,
                )
        what = (
            _check_speech(manifest, aux)
            if aux is not None
            else f"tokenizer not looked at, since aux is {_where(shards[-1])}"
        )
    except MeshError as exc:
        return _failed("contents", exc)
    if any(shard.header is None for shard in shards if shard.is_held):
        return Step("contents", Outcome.NOT_CHECKED, "of bad shards; the others are sound")
    whole = all(shard.is_held for shard in shards)
    return Step(
        "contents",
        Outcome.PASSED,
        f"{'' if whole else 'of what is held, '}tensors fit the model, all numbers are finite, {what}",
    )


def check_tensors(manifest: Manifest, ref: ShardRef, header: ShardHeader) -> None:
    """The shard holds the tensors its place in the model needs, and no other. Raises ShardCorrupt."""
    wanted = tensor_shapes(manifest.config, ref.role)
    for name in sorted(wanted.keys() | header.tensors.keys()):
        shape = list(header.tensors[name].shape) if name in header.tensors else "none"
        expected = list(wanted[name]) if name in wanted else "no such tensor"
        if shape != expected:
            raise ShardCorrupt(ref.file, f"{name} {expected}", str(shape), _REPACK)
        if (kind := header.tensors[name].type) not in WEIGHT_TYPES:
            raise ShardCorrupt(ref.file, f"{name} of type {', '.join(WEIGHT_TYPES)}", kind, _REPACK)


def _check_speech(manifest: Manifest, aux: Shard) -> str:
    """Config, tokenizer and chat template can be read and agree with the manifest. Raises ShardCorrupt."""
    from mesh import strict_json
    from mesh.architecture import LlamaConfig
    from mesh.model.tokenizer import Tokenizer

    try:
        config = LlamaConfig.from_json(
            strict_json.loads(bytes(aux.bytes_of("config.json")), max_bytes=1 << 20)
        )
    except (KeyError, ValueError) as exc:
        raise ShardCorrupt("aux", "a config.json", str(exc)[:200], _REPACK) from exc
    if config != manifest.config:
        raise ShardCorrupt("aux", "the config that the manifest states", "another config.json", _REPACK)
    tokenizer = Tokenizer.from_aux(aux)
    if tokenizer.vocab_size > config.vocab_size:
        raise ShardCorrupt(
            "aux", f"a vocabulary of at most {config.vocab_size}", f"{tokenizer.vocab_size} tokens", _REPACK
        )
    try:
        from mesh.model.chat_template import ChatTemplate
    except ModuleNotFoundError:  # it comes with the coordinator
        return "tokenizer reads; chat template not looked at (install llama-mesh[coordinator])"
    ChatTemplate.from_aux(aux, tokenizer)
    return "tokenizer and chat template read"


def _failed(name: str, problem: MeshError) -> Step:
    return Step(name, Outcome.FAILED, str(problem), problem)
