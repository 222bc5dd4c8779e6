"""Where the terms of a release are read: in a release on disk, or from the coordinator that serves it.

Either way the manifest's signature is checked first, and the texts against the manifest: what is shown is what the
publisher signed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from mesh.cli.believing import believe_token
from mesh.errors import UsageError
from mesh.token import JoinToken
from mesh.weights.releases.release import Release
from mesh.weights.shards.shard import read_shard
from mesh.weights.trust.keyring import trusted_keys
from mesh.weights.trust.license_text import LicenseTexts
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import TrustRoot, open_manifest
from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import format_endpoint, open_channel, parse_endpoint
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from

CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Terms:
    manifest: Manifest
    texts: LicenseTexts


def find_terms(
    path: Path | None, coordinator: str | None, token: str | None, trust: Path | None, release: str | None
) -> Terms:
    """From ``path`` if it is given, else from the coordinator. Raises UsageError if neither is."""
    if path is not None:
        terms = _of_release(path, trusted_keys(trust))
    elif coordinator is not None:
        if token is None:
            raise UsageError("--coordinator needs --token; it says whose signatures to believe")
        target = format_endpoint(*parse_endpoint(coordinator, what="--coordinator"))
        given = TrustRoot.load(trust) if trust else None
        terms = asyncio.run(_of_coordinator(target, JoinToken.parse(token), given, release or ""))
    else:
        raise UsageError("whose licence? Name a release's directory, or --coordinator HOST:PORT with --token")
    terms.texts.check(terms.manifest.license)
    return terms


def _of_release(directory: Path, trust: TrustRoot) -> Terms:
    release = Release.open(directory, trust)
    ref = release.manifest.shard("aux")
    return Terms(release.manifest, LicenseTexts.of_aux(read_shard(release.shard_path(ref), ref)))


async def _of_coordinator(target: str, token: JoinToken, trust: TrustRoot | None, release: str) -> Terms:
    request = coordinator_pb2.ReleaseRequest(
        protocol=VERSION, token_secret=token.secret, release=release, trust_digest=token.trust_digest
    )
    async with open_channel(target) as channel:
        try:
            reply = await coordinator_pb2_grpc.CoordinatorStub(channel).GetRelease(
                request, timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as exc:
            raise error_from(exc) from exc
    if trust is None:
        belief = await asyncio.to_thread(believe_token, token, target, reply.trust_root, reply.manifest)
        trust = belief.trust
    texts = LicenseTexts(reply.license_text, reply.license_notice or None, reply.license_policy or None)
    return Terms(open_manifest(reply.manifest, trust), texts)
