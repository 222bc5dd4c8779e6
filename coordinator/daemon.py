"""Composition root of ``mesh-coordinator up``: verifies the release, makes the real parts, owns signals, tears down.

Nothing listens before the release was verified offline: signature, torrent, and the aux shard that holds tokenizer and
chat template. The coordinator reads no other shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from coordinator.access.admission import Admission
from coordinator.access.callers import Callers
from coordinator.api import create_app
from coordinator.availability import Availability
from coordinator.config import CoordinatorConfig
from coordinator.data_directory import Listening, write_listening
from coordinator.generation_service import GenerationService
from coordinator.join_tokens import create_token
from coordinator.journal import Journal
from coordinator.membership import Membership
from coordinator.pipeline import Pipeline
from coordinator.servers import serving_clients, serving_grpc
from coordinator.service import CoordinatorService, OfferedRelease
from coordinator.serving import ServedModel
from coordinator.state import StateStore, open_state
from mesh.clock import Clock, SystemClock
from mesh.errors import MeshError, UsageError
from mesh.locking import locked_directory
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.stopping import run_until_signal
from mesh.swarm.metainfo import check_torrent
from mesh.token import JoinToken
from mesh.weights.keyring import trusted_keys
from mesh.weights.release import Release
from mesh.weights.shard import Shard, read_shard
from mesh.weights.signing import TrustRoot, signer_of
from mesh.wire.channel import MAX_MESSAGE_BYTES, format_endpoint

logger = logging.getLogger(__name__)

LEASE_CHECK_SECONDS = 1.0
SEEN_EVERY_CHECKS = 5  # how often the database learns who is still there
_OFFER_ROOM_BYTES = 1024 * 1024  # of a message, for everything but manifest and torrent

OnListening = Callable[[Listening, JoinToken | None], None]


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    release: Release
    trust: TrustRoot
    aux: Shard


def run(config: CoordinatorConfig, on_listening: OnListening) -> int | None:
    """Serve until SIGTERM or SIGINT; returns 128 + the signal's number. Raises MeshError."""
    verified = verify(config)
    with locked_directory(config.data, "mesh-coordinator"):
        return run_until_signal(_serve(config, verified, on_listening, SystemClock()))


def verify(config: CoordinatorConfig) -> VerifiedRelease:
    """The release, every check that needs no network. Raises IntegrityError, NotFound, UsageError."""
    trust = trusted_keys(config.trust_file)
    release = Release.open(config.release, trust)
    release.manifest.require_model()
    check_torrent(release.torrent, release.manifest)
    ref = release.manifest.shard("aux")
    aux = read_shard(release.shard_path(ref), ref)
    if len(release.envelope) + len(release.torrent) > MAX_MESSAGE_BYTES - _OFFER_ROOM_BYTES:
        raise UsageError(
            f"{config.release}: manifest and torrent are too large for one offer; use larger pieces"
        )
    # Of the keys the operator keeps, nodes are told the one that signed: they need believe no other, and join tokens
    # stay good when another key is added.
    return VerifiedRelease(release, TrustRoot.of(signer_of(release.envelope, trust)), aux)


async def _serve(
    config: CoordinatorConfig, verified: VerifiedRelease, on_listening: OnListening, clock: Clock
) -> None:
    manifest = verified.release.manifest
    membership = Membership(manifest.config.num_layers, config.lease_seconds)
    availability = Availability(manifest.name, membership, clock)
    pipeline = Pipeline(availability.find_route, availability.on_link_lost)
    model = _served_model(verified, pipeline, Admission(availability, clock))

    async def end_answers() -> None:
        availability.stop()
        await pipeline.close()

    models = {model.name: model}
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(_remembering(config))
        callers = Callers(state, clock)
        nodes = await stack.enter_async_context(
            serving_grpc(
                config.grpc,
                CoordinatorService(_offered(verified), membership, state, clock),
                GenerationService(models, availability.health, callers),
                availability.health,
            )
        )
        app = create_app(models, availability.health, callers)
        clients, http = await stack.enter_async_context(serving_clients(config.http, app, end_answers))

        listening = Listening(
            http=format_endpoint(*config.reachable(clients)),
            grpc=format_endpoint(*config.reachable(nodes)),
            trust_digest=verified.trust.digest().hex(),
            release=manifest.release_id,
            model=manifest.name,
        )
        write_listening(config.data, listening)
        token = None
        if config.make_token:
            token = await create_token(state, verified.trust.digest(), "up", clock.wall())
        logger.info(
            "listening",
            extra={"http": listening.http, "grpc": listening.grpc, "model": listening.model},
        )
        on_listening(listening, token)
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch_leases(membership, state, clock), name="leases")
            await asyncio.shield(http)  # ends only when it is told to
    logger.info("stopped")


@asynccontextmanager
async def _remembering(config: CoordinatorConfig) -> AsyncIterator[StateStore]:
    """The state, in which nobody is present before the start and after the end."""
    async with open_state(config.data) as state:
        await state.forget_presence()
        try:
            yield state
        finally:
            try:
                await state.forget_presence()
            except MeshError as exc:  # a full disk must not hide why we are ending
                logger.error("could not note that nobody is here any more", extra={"reason": str(exc)})


async def _watch_leases(membership: Membership, state: StateStore, clock: Clock) -> None:
    journal, checks = Journal(state, clock), 0
    while True:
        await asyncio.sleep(LEASE_CHECK_SECONDS)
        now, checks = clock.monotonic(), checks + 1
        await journal.write(membership.expire(now))
        if checks % SEEN_EVERY_CHECKS == 0:
            try:
                await state.seen([node.node_id for node in membership.view(now).nodes], clock.wall())
            except MeshError as exc:
                logger.error("could not note who is here", extra={"reason": str(exc)})


def _offered(verified: VerifiedRelease) -> OfferedRelease:
    release = verified.release
    return OfferedRelease(
        release_id=release.manifest.release_id,
        config=release.manifest.config,
        trust_root=verified.trust.to_bytes(),
        envelope=release.envelope,
        torrent=release.torrent,
        license_text=bytes(verified.aux.bytes_of("LICENSE")),
    )


def _served_model(verified: VerifiedRelease, pipeline: Pipeline, admission: Admission) -> ServedModel:
    manifest, tokenizer = verified.release.manifest, Tokenizer.from_aux(verified.aux)
    return ServedModel(
        name=manifest.name,
        manifest=manifest,
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_aux(verified.aux, tokenizer),
        pipeline=pipeline,
        admission=admission,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
    )
