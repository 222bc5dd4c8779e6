"""Composition root of ``mesh-coordinator up``: verifies the release, makes the real parts, owns signals, tears down.

Nothing listens before the release was verified offline: signature, torrent, and the aux shard that holds tokenizer and
chat template. The coordinator reads no other shard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from coordinator.access.callers import Callers
from coordinator.api import create_app
from coordinator.config import CoordinatorConfig
from coordinator.data_directory import Listening, write_listening
from coordinator.generation_service import GenerationService
from coordinator.hosting import Hosting
from coordinator.join_tokens import create_token
from coordinator.journal import Journal
from coordinator.releasing import Releasing
from coordinator.served_catalog import ServedCatalog
from coordinator.servers import serving_clients, serving_grpc
from coordinator.service import CoordinatorService
from coordinator.state import StateStore, open_state
from coordinator.tracker import Tracker
from coordinator.verified_release import host, verify
from mesh.clock import Clock, SystemClock
from mesh.errors import MeshError
from mesh.locking import locked_directory
from mesh.stopping import run_until_signal
from mesh.token import JoinToken
from mesh.weights.trust.catalog.placing import find_place
from mesh.weights.trust.keyring import signing_keys, trusted_keys
from mesh.weights.trust.signing import TrustRoot
from mesh.wire.channel import format_endpoint

logger = logging.getLogger(__name__)

LEASE_CHECK_SECONDS = 1.0
SEEN_EVERY_CHECKS = 5  # how often the database learns who is still there

OnListening = Callable[[Listening, JoinToken | None], None]


def run(config: CoordinatorConfig, on_listening: OnListening) -> int | None:
    """Serve until SIGTERM or SIGINT; returns 128 + the signal's number. Raises MeshError."""
    clock = SystemClock()
    catalog = _catalog(config, clock)
    kept = catalog.trust() if catalog is not None else trusted_keys(config.trust_file)
    verified = [verify(_placed(release, config), kept, catalog) for release in config.releases]
    # Of the keys the operator keeps, nodes are told those that signed: they need believe no other, and join tokens
    # stay good when another key is added.
    trust = TrustRoot.of(*(each.signer for each in verified))
    hosting = Hosting(clock)
    for each in verified:
        hosting.add(
            host(each, trust, config.lease_seconds, clock, max_session_tokens=config.max_session_tokens)
        )
    with locked_directory(config.data, "mesh-coordinator"):
        return run_until_signal(_serve(config, hosting, trust, catalog, on_listening, clock))


def _placed(release: Path, config: CoordinatorConfig) -> Path:
    """A directory, or the place of a release that the catalog knows by name."""
    if config.catalog is None or release.exists():
        return release
    return find_place(config.catalog, str(release))


def _catalog(config: CoordinatorConfig, clock: Clock) -> ServedCatalog | None:
    if config.catalog is None:
        return None
    config.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = list(signing_keys(config.online_keys))
    return ServedCatalog(config.catalog, config.data / "catalog", keys, clock)


async def _serve(
    config: CoordinatorConfig,
    hosting: Hosting,
    trust: TrustRoot,
    catalog: ServedCatalog | None,
    on_listening: OnListening,
    clock: Clock,
) -> None:
    trust_digest = catalog.root_digest if catalog is not None else trust.digest()  # what join tokens pin

    async def end_answers() -> None:
        await asyncio.gather(*(hosted.close() for hosted in hosting.all))

    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(_remembering(config))
        releasing = Releasing(
            hosting, state, trust, config.lease_seconds, clock, catalog, config.max_session_tokens
        )
        await releasing.look()
        callers = Callers(state, clock)
        nodes = await stack.enter_async_context(
            serving_grpc(
                config.grpc,
                CoordinatorService(hosting, state, clock, catalog),
                GenerationService(hosting, hosting.health, callers),
                hosting.health,
            )
        )
        app = create_app(hosting, hosting.health, callers, Tracker(hosting, state, clock))
        clients, http = await stack.enter_async_context(serving_clients(config.http, app, end_answers))
        first = hosting.all[0]
        listening = Listening(
            http=format_endpoint(*config.reachable(clients)),
            grpc=format_endpoint(*config.reachable(nodes)),
            trust_digest=trust_digest.hex(),
            release=first.release_id,
            model=first.model.name,
        )
        write_listening(config.data, listening)
        token = None
        if config.make_token:
            token = await create_token(state, trust_digest, "up", clock.wall())
        logger.info(
            "listening",
            extra={"http": listening.http, "grpc": listening.grpc, "models": list(hosting)},
        )
        on_listening(listening, token)
        async with asyncio.TaskGroup() as group:
            group.create_task(_watch_leases(hosting, state, clock), name="leases")
            group.create_task(releasing.run(), name="releases")
            if catalog is not None:
                group.create_task(catalog.run(), name="catalog")
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


async def _watch_leases(hosting: Hosting, state: StateStore, clock: Clock) -> None:
    journal, checks = Journal(state, clock), 0
    while True:
        await asyncio.sleep(LEASE_CHECK_SECONDS)
        now, checks = clock.monotonic(), checks + 1
        for hosted in hosting.all:
            await journal.write(hosted.membership.expire(now))
        if checks % SEEN_EVERY_CHECKS == 0:
            present = [node.node_id for hosted in hosting.all for node in hosted.membership.view(now).nodes]
            try:
                await state.seen(present, clock.wall())
            except MeshError as exc:
                logger.error("could not note who is here", extra={"reason": str(exc)})
