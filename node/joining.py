"""The join story: offer, checks, plan, reservation, shards, stage, service.

Told once, in order, in ``join``; every part is a value or a thin object made by ``daemon.py``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mesh.cli.asking import ask
from mesh.errors import MeshError, NotFound, Temporary, UsageError
from mesh.layers import LayerRange
from mesh.model.loader import load_stage
from mesh.swarm.fetching import FetchProgress, FetchReport
from mesh.swarm.twin_fetching import ReleaseTorrents, fetch_release
from mesh.weights.trust.keyring import read_trust
from mesh.weights.trust.manifest import Manifest, ShardRef
from mesh.weights.trust.revocation import ReleaseRevoked
from mesh.weights.trust.signing import TrustRoot
from mesh.wire import coordinator_pb2
from mesh.wire.channel import format_endpoint
from node.accepting import AcceptedOffer, LicenseNotAccepted, Limits, OfferedBytes, accept
from node.beside import beside
from node.capacity import disk_bytes, memory_bytes
from node.catalog import NodeCatalog
from node.config import NodeConfig
from node.coordinator_client import CoordinatorClient
from node.licensing import take_word
from node.membership import Membership, NodeStatus, Superseded
from node.obeying import obey
from node.parts import NodeParts
from node.serving import serving
from node.trusting import coordinator_source, whom_to_believe

logger = logging.getLogger(__name__)

_OFFER_ATTEMPTS = 5  # newcomers that arrive together may be offered the same gap


def new_incarnation() -> int:
    """Random, so that a restarted process is never mistaken for the one before; never 0, which means unset."""
    return secrets.randbits(63) | 1


async def join(parts: NodeParts, config: NodeConfig) -> None:
    """Join and serve until cancelled, then leave; where a newer version of the model is published, join for that.

    Raises any MeshError of the way.
    """
    while True:
        try:
            await _join_once(parts, config)
        except ReleaseRevoked as exc:
            await obey(exc, parts.swarm, parts.holdings)
            raise
        except Superseded as exc:
            parts.reporter.superseded(str(exc))
            logger.info("joining again", extra={"reason": str(exc)})


async def _join_once(parts: NodeParts, config: NodeConfig) -> None:
    client = CoordinatorClient(
        parts.channel, config.coordinator, node_id=parts.node_id, incarnation=parts.incarnation
    )
    accepted, catalog, lease, peers = await _agree(parts, config, client)
    status = NodeStatus(swarm=parts.swarm.endpoint)

    async def rejoin() -> coordinator_pb2.Lease:
        """The coordinator has forgotten us: take the same layers of the same release again, or fail."""
        if catalog is not None:  # forgotten, perhaps because what we serve was revoked
            await _refresh_if_possible(catalog)
            catalog.judge()
        limits = _limits(parts, config, layers=accepted.layers)
        release_id = accepted.manifest.release_id
        try:
            await _request_offer(client, parts, config, limits, release_id=release_id, wait_seconds=0)
        except NotFound as exc:
            raise Superseded(str(exc)) from exc
        return await _reserve(client, parts, accepted, catalog)

    membership = Membership(client, status, rejoin, lease, peers, lambda lease: _tell(catalog, lease))
    # Held until the node ends: nobody may remove what it fetches, loads and seeds.
    held = parts.holdings.hold(accepted.envelope, accepted.torrent, accepted.manifest, accepted.shards)
    async with (
        beside(membership.run(), name="membership"),
        beside(_follow(catalog), name="catalog"),
        beside(_obey_revocations(catalog), name="revocations"),
    ):
        try:
            with held as save_path:
                paths = await _fetch(parts, config, save_path, accepted, membership, status)
                if catalog is not None:
                    catalog.check()  # fetching may have taken days
                    catalog.judge()
                status.state = coordinator_pb2.LOADING
                membership.report_soon()
                parts.reporter.loading()
                began = time.monotonic()
                stage = await asyncio.to_thread(
                    load_stage,
                    accepted.manifest.config,
                    accepted.layers,
                    paths,
                    device=parts.device,
                    engine=config.engine,
                )
                async with serving(stage, paths, parts, config, accepted, status, catalog) as endpoint:
                    status.state = coordinator_pb2.READY
                    await membership.report()
                    parts.reporter.ready(format_endpoint(*endpoint), time.monotonic() - began)
                    await asyncio.get_running_loop().create_future()  # serve until cancelled
        finally:
            parts.reporter.close()
            await _say_goodbye(client)


async def _agree(
    parts: NodeParts, config: NodeConfig, client: CoordinatorClient
) -> tuple[AcceptedOffer, NodeCatalog | None, coordinator_pb2.Lease, list[tuple[str, int]]]:
    """Offer, our own checks, the plan, the volunteer's word, the reservation."""
    limits = _limits(parts, config, layers=config.layers)
    brought = read_trust(config.trust_file) if config.trust_file else None
    for attempts_left in reversed(range(_OFFER_ATTEMPTS)):
        offer, peers = await _request_offer(client, parts, config, limits, wait_seconds=config.wait_seconds)
        believed = await whom_to_believe(
            offer,
            trust_digest=config.token.trust_digest,
            brought=brought,
            memory=config.data / "catalog",
            source=coordinator_source(client, config.token.secret),
        )
        accepted = await _accept(parts, config, offer, believed.keys, limits)
        if believed.catalog is not None:  # before anything is shown or fetched
            believed.catalog.guard(accepted.manifest, accepted.shards)
        missing = sum(ref.size for ref in accepted.shards if parts.holdings.store.path(ref) is None)
        parts.reporter.plan(config.name, accepted, missing, parts.engine.kernel_id)
        await _ask_volunteer(config)
        try:
            lease = await _reserve(client, parts, accepted, believed.catalog)
        except Temporary:  # somebody else took these layers while we were looking at them
            if not attempts_left:
                raise
            continue
        parts.reporter.reserved()
        logger.info("layers reserved", extra={"layers": str(accepted.layers)})
        return accepted, believed.catalog, lease, peers
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _accept(
    parts: NodeParts, config: NodeConfig, offer: OfferedBytes, trust: TrustRoot | None, limits: Limits
) -> AcceptedOffer:
    """Our own checks; where the licence wants the volunteer's word, it is asked for and all is checked again."""
    while True:
        try:
            return accept(offer, trust_digest=config.token.trust_digest, trust_override=trust, limits=limits)
        except LicenseNotAccepted as asked:
            await take_word(
                asked,
                config,
                key=parts.key,
                book=parts.licenses,
                reporter=parts.reporter,
                clock=parts.clock,
            )
            limits = replace(limits, accepted_terms=parts.licenses.accepted_terms(parts.node_id))


async def _reserve(
    client: CoordinatorClient, parts: NodeParts, accepted: AcceptedOffer, catalog: NodeCatalog | None
) -> coordinator_pb2.Lease:
    manifest = accepted.manifest
    return await client.accept_offer(
        manifest.release_id,
        accepted.layers,
        accepted.plan.total_bytes,
        _license_record(parts, manifest),
        catalog.revocations_version if catalog is not None else 0,
    )


def _license_record(parts: NodeParts, manifest: Manifest) -> bytes:
    """Signed by this node, for the coordinator to keep; empty where the licence asks for nobody's word."""
    if not manifest.license.acceptance_required:
        return b""
    return parts.licenses.record_for(manifest, parts.key, parts.clock.wall())


def _limits(parts: NodeParts, config: NodeConfig, *, layers: LayerRange | None) -> Limits:
    return Limits(
        memory_bytes=memory_bytes(parts.device, config.memory_bytes),
        disk_bytes=disk_bytes(config.data),
        kv_tokens=config.kv_tokens,
        max_sessions=config.max_sessions,
        layers=layers,
        model=config.model,
        accepted_terms=parts.licenses.accepted_terms(parts.node_id),
    )


async def _request_offer(
    client: CoordinatorClient,
    parts: NodeParts,
    config: NodeConfig,
    limits: Limits,
    *,
    release_id: str = "",
    wait_seconds: float,
) -> Any:
    return await client.request_offer(
        token_secret=config.token.secret,
        name=config.name,
        kernel_id=parts.engine.kernel_id,
        limits=limits,
        release_id=release_id,
        wait_seconds=wait_seconds,
        trust_digest=config.token.trust_digest,
    )


def _tell(catalog: NodeCatalog | None, lease: coordinator_pb2.Lease) -> None:
    if catalog is not None:
        catalog.on_lease(lease.catalog_version)


async def _follow(catalog: NodeCatalog | None) -> None:
    """Refreshes the catalog for as long as we serve; a mesh without one has nothing that could change."""
    if catalog is not None:
        await catalog.run()
    else:
        await asyncio.get_running_loop().create_future()


async def _obey_revocations(catalog: NodeCatalog | None) -> None:
    """Ends by raising when what we serve is revoked, which unloads it."""
    if catalog is not None:
        await catalog.watch()
    else:
        await asyncio.get_running_loop().create_future()


async def _refresh_if_possible(catalog: NodeCatalog) -> None:
    try:
        await catalog.refresh()
    except MeshError as exc:
        logger.info("catalog not refreshed", extra={"reason": str(exc)})


async def _ask_volunteer(config: NodeConfig) -> None:
    """Nothing is downloaded before a person has seen the plan; scripts say --yes."""
    if config.assume_yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm the plan; add --yes to take it as it is")
    if (await ask("Go? [Y/n] ")).lower() not in ("", "y", "yes"):
        raise UsageError("not joined: the plan was declined")


async def _fetch(
    parts: NodeParts,
    config: NodeConfig,
    save_path: Path,
    accepted: AcceptedOffer,
    membership: Membership,
    status: NodeStatus,
) -> Mapping[ShardRef, Path]:
    """Every shard of our layers, verified, under its address in the store; the swarm goes on serving them."""

    def on_progress(progress: FetchProgress) -> None:
        status.progress = progress.done_bytes / max(1, progress.wanted_bytes)
        parts.reporter.fetching(progress)

    report: FetchReport = await fetch_release(
        parts.swarm,
        ReleaseTorrents(accepted.manifest, accepted.torrent, accepted.twin_torrent),
        accepted.shards,
        save_path,
        peers=lambda: membership.peers,
        on_progress=on_progress,
        store=parts.holdings.store,
        encoding=config.encoding,
    )
    status.progress = 1.0
    status.fetched_bytes, status.redundant_bytes = report.fetched_bytes, report.redundant_bytes
    parts.reporter.fetched(accepted, report)
    return report.paths


async def _say_goodbye(client: CoordinatorClient) -> None:
    try:
        await client.leave()
    except MeshError as exc:
        logger.info("left without a goodbye", extra={"reason": str(exc)})
