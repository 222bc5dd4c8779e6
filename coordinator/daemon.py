"""Composition root of ``mesh-coordinator up``: verifies the release, makes the real parts, owns signals, tears down.

Nothing listens before the release was verified offline: signature, torrent, and the aux shard that holds tokenizer and
chat template. The coordinator reads no other shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import grpc.aio
import uvicorn
from starlette.types import ASGIApp

from coordinator.api import create_app
from coordinator.availability import Availability
from coordinator.config import CoordinatorConfig
from coordinator.data_directory import Listening, locked, write_listening
from coordinator.join_tokens import create_token
from coordinator.journal import Journal
from coordinator.membership import Membership
from coordinator.pipeline import Pipeline
from coordinator.service import CoordinatorService, OfferedRelease
from coordinator.serving import ServedModel
from coordinator.state import StateStore, open_state
from coordinator.topology import Endpoint
from mesh.clock import Clock, SystemClock
from mesh.errors import MeshError, UsageError
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.swarm.metainfo import check_torrent
from mesh.token import JoinToken
from mesh.weights.keyring import trusted_keys
from mesh.weights.release import Release
from mesh.weights.shard import Shard, read_shard
from mesh.weights.signing import TrustRoot, signer_of
from mesh.wire import coordinator_pb2_grpc
from mesh.wire.channel import MAX_MESSAGE_BYTES, format_endpoint, server_options

logger = logging.getLogger(__name__)

HTTP_STOP_SECONDS = 3  # for answers that were just told of the end; then their connections are cut
GRPC_STOP_SECONDS = 1.0
LEASE_CHECK_SECONDS = 1.0
SEEN_EVERY_CHECKS = 5  # how often the database learns who is still there
_OFFER_ROOM_BYTES = 1024 * 1024  # of a message, for everything but manifest and torrent

OnListening = Callable[[Listening, JoinToken | None], None]


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    release: Release
    trust: TrustRoot
    aux: Shard


def run(config: CoordinatorConfig, on_listening: OnListening) -> int:
    """Serve until SIGTERM or SIGINT; returns 128 + the signal's number. Raises MeshError."""
    verified = verify(config)
    with locked(config.data):
        return asyncio.run(_until_signal(_serve(config, verified, on_listening, SystemClock())))


def verify(config: CoordinatorConfig) -> VerifiedRelease:
    """The release, every check that needs no network. Raises IntegrityError, NotFound, UsageError."""
    trust = trusted_keys(config.trust_file)
    release = Release.open(config.release, trust)
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


async def _until_signal(story: Awaitable[None]) -> int:
    task = asyncio.ensure_future(story)
    received: list[int] = []

    def on_signal(number: int) -> None:
        if received:
            os._exit(128 + number)  # asked twice: now means now
        received.append(number)
        logger.info("stopping", extra={"signal": signal.Signals(number).name})
        task.cancel()  # every `async with` of the story puts its part back in order

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return 128 + received[0]


async def _serve(
    config: CoordinatorConfig, verified: VerifiedRelease, on_listening: OnListening, clock: Clock
) -> None:
    manifest = verified.release.manifest
    membership = Membership(manifest.config.num_layers, config.lease_seconds)
    availability = Availability(manifest.name, membership, clock)
    pipeline = Pipeline(availability.find_route)
    model = _served_model(verified, pipeline)
    app = create_app({model.name: model}, availability.health)

    async def end_answers() -> None:
        availability.stop()
        await pipeline.close()

    async with (
        open_state(config.data) as state,
        _serving_nodes(
            config.grpc, CoordinatorService(_offered(verified), membership, state, clock)
        ) as nodes,
        _serving_clients(config.http, app, end_answers) as (clients, http),
    ):
        await state.forget_presence()
        listening = Listening(
            http=format_endpoint(*config.reachable(clients)),
            grpc=format_endpoint(*config.reachable(nodes)),
            trust_digest=verified.trust.digest().hex(),
            release=manifest.release_id,
            model=manifest.name,
        )
        write_listening(config.data, listening)
        token = (
            await create_token(state, verified.trust.digest(), "up", clock.wall())
            if config.make_token
            else None
        )
        logger.info(
            "listening",
            extra={"http": listening.http, "grpc": listening.grpc, "model": listening.model},
        )
        on_listening(listening, token)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_watch_leases(membership, state, clock), name="leases")
                await asyncio.shield(http)  # ends only when it is told to
        finally:
            await state.forget_presence()
    logger.info("stopped")


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
    )


def _served_model(verified: VerifiedRelease, pipeline: Pipeline) -> ServedModel:
    manifest, tokenizer = verified.release.manifest, Tokenizer.from_aux(verified.aux)
    return ServedModel(
        name=manifest.name,
        manifest=manifest,
        tokenizer=tokenizer,
        chat_template=ChatTemplate.from_aux(verified.aux, tokenizer),
        pipeline=pipeline,
        created=int(datetime.fromisoformat(manifest.created).timestamp()),
    )


# -- what listens


@asynccontextmanager
async def _serving_nodes(endpoint: Endpoint, service: CoordinatorService) -> AsyncIterator[Endpoint]:
    """The gRPC side; yields where it listens."""
    host, wanted = endpoint
    _listener(endpoint, "--grpc").close()  # gRPC would say in many lines that a port is taken
    server = grpc.aio.server(options=server_options())
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(service, server)
    try:
        port = server.add_insecure_port(format_endpoint(host, wanted))
    except RuntimeError as exc:
        raise _cannot_listen(endpoint, "--grpc", str(exc)) from exc
    await server.start()
    try:
        yield host, port
    finally:
        await server.stop(GRPC_STOP_SECONDS)


@asynccontextmanager
async def _serving_clients(
    endpoint: Endpoint, app: ASGIApp, end_answers: Callable[[], Awaitable[None]]
) -> AsyncIterator[tuple[Endpoint, asyncio.Task[None]]]:
    """The HTTP side in this loop; yields where it listens, and the task that serves."""
    with _listener(endpoint, "--listen") as listener:
        server = _HttpServer(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # generation logs one line per answer, without what was said
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=HTTP_STOP_SECONDS,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]), name="http")
        try:
            yield (endpoint[0], listener.getsockname()[1]), task
        finally:
            server.should_exit = True  # no new connections; then each open answer gets its error and ends
            await end_answers()
            await task


class _HttpServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's."""
        yield


def _listener(endpoint: Endpoint, flag: str) -> socket.socket:
    """A listening socket. Raises MeshError saying which flag to change."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        return socket.create_server(endpoint, family=family, backlog=1024)
    except OSError as exc:
        reason = "the port is in use" if exc.errno == errno.EADDRINUSE else (exc.strerror or str(exc))
        raise _cannot_listen(endpoint, flag, reason) from exc


def _cannot_listen(endpoint: Endpoint, flag: str, reason: str) -> MeshError:
    return MeshError(
        f"cannot listen on {format_endpoint(*endpoint)}: {reason}; stop what uses it, or choose another with {flag} HOST:PORT"
    )
