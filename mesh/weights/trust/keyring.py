"""The user's keys: ``NAME.key`` (private) beside ``NAME.pub`` (a trust root of that one key), in one directory.

Knows names and files. Knows nothing of what is signed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mesh.dirs import keys_dir
from mesh.errors import NotFound, UsageError
from mesh.weights.disk import naming_full_disk, read_small
from mesh.weights.trust.catalog.names import MAX_ROOT_BYTES, is_catalog_root
from mesh.weights.trust.signing import PrivateKey, PublicKey, TrustRoot

DEFAULT_NAME = "publisher"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def new_key(name: str = DEFAULT_NAME, directory: Path | None = None) -> tuple[Path, Path]:
    """Make a key pair; returns the paths of the private and the public file. Never overwrites either."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"key name {name[:80]!r}: expected letters, digits, '.', '_' and '-'")
    directory = directory if directory is not None else keys_dir()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    private, public = directory / f"{name}.key", directory / f"{name}.pub"
    if public.exists():
        raise UsageError(f"{public} exists; keys are never overwritten, choose another name")
    key = PrivateKey.generate()
    key.save(private)
    try:
        with naming_full_disk(public), public.open("xb") as file:
            file.write(TrustRoot.of(key.public).to_bytes())
    except BaseException:
        private.unlink()  # a pair or nothing
        public.unlink(missing_ok=True)
        raise
    return private, public


def find_key(path_or_name: str) -> PrivateKey:
    """The private key in a file, or the one of that name in the user's key directory."""
    path = Path(path_or_name)
    if not path.is_file():
        named = keys_dir() / f"{path_or_name}.key"
        if not _NAME.fullmatch(path_or_name) or not named.is_file():
            raise NotFound(f"key {path_or_name}: no such file, and no {named}; make one with: mesh keys new")
        path = named
    return PrivateKey.load(path)


def signing_keys(names: Sequence[str] = (), directory: Path | None = None) -> Iterator[PrivateKey]:
    """The private keys so named (files, or names in the key directory); without names every one that is kept."""
    if names:
        yield from (find_key(name) for name in names)
        return
    for path in sorted((directory if directory is not None else keys_dir()).glob("*.key")):
        yield PrivateKey.load(path)


def online_signing_key(path_or_name: str) -> PrivateKey:
    """The key of that name, made if it is not there. It gets no ``.pub``: who refreshes a catalog vouches for no release."""
    try:
        return find_key(path_or_name)
    except NotFound:
        if not _NAME.fullmatch(path_or_name):
            raise
    keys_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
    key = PrivateKey.generate()
    key.save(keys_dir() / f"{path_or_name}.key")
    return key


def find_public_key(path_or_name: str) -> PublicKey:
    """The one key of a trust file, the public half of a private one, or the one kept under that name."""
    path = Path(path_or_name)
    for candidate in (path, keys_dir() / f"{path_or_name}.pub", keys_dir() / f"{path_or_name}.key"):
        if not candidate.is_file() or (candidate is not path and not _NAME.fullmatch(path_or_name)):
            continue
        if candidate.suffix == ".key" or _is_pem(candidate):
            return PrivateKey.load(candidate).public
        found = list(TrustRoot.load(candidate).keys.values())
        if len(found) != 1:
            raise UsageError(f"{candidate} lists {len(found)} keys; expected one")
        return found[0]
    raise NotFound(
        f"key {path_or_name}: no such file, and no {keys_dir() / path_or_name}.pub; make one with: mesh keys new"
    )


def _is_pem(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(11) == b"-----BEGIN "


def public_keys(directory: Path | None = None) -> Iterator[tuple[Path, TrustRoot]]:
    """Every ``*.pub`` of a directory, by name."""
    for path in sorted((directory if directory is not None else keys_dir()).glob("*.pub")):
        yield path, TrustRoot.load(path)


def trusted_keys(trust_file: Path | None) -> TrustRoot:
    """Whom to believe: the file if one is given, else every public key the user keeps."""
    if trust_file is not None:
        if is_catalog_root(read_trust(trust_file)):
            raise UsageError(
                f"{trust_file} is the root of a catalog: add --catalog DIR|URL, where the catalog is"
            )
        return TrustRoot.load(trust_file)
    found = [key for _, root in public_keys() for key in root.keys.values()]
    if not found:
        raise NotFound(f"no publisher key in {keys_dir()}; pass the publisher's with --trust FILE")
    return TrustRoot.of(*found)


def read_trust(path: Path) -> bytes:
    """A trust file's bytes, of either kind: a list of keys or a catalog's root. Raises NotFound, UsageError."""
    return read_small(path, MAX_ROOT_BYTES, "trust")
