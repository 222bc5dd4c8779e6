"""Tell a coordinator where a seeder listens, for as long as the seeder lives.

An announcement is a lease: it is renewed well before it ends, and made again when a coordinator comes back. A
coordinator that does not answer never stops the seeding; a token it refuses does, since waiting cannot help that.

Knows the ``Announce`` call and its rhythm. Knows nothing of torrents.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections.abc import Callable, Iterator

import grpc.aio

from mesh.errors import MeshError, NotAuthorised, Unreachable
from mesh.wire import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel, parse_endpoint
from mesh.wire.protocol import VERSION
from mesh.wire.status import error_from

CALL_SECONDS = 10.0
RENEWALS_PER_LEASE = 3  # two may get lost before peers forget us
MIN_RENEWAL_SECONDS = 0.05  # whatever a coordinator says, it is not asked more often
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 15.0


def announcement(secret: bytes, release_id: str, host: str, port: int) -> coordinator_pb2.AnnounceRequest:
    """What this process says of itself; ``peer_id`` is new with every process."""
    return coordinator_pb2.AnnounceRequest(
        protocol=VERSION,
        token_secret=secret,
        release_id=release_id,
        swarm=common_pb2.Endpoint(host=host, port=port),
        peer_id=secrets.token_hex(8),
    )


async def keep_announced(
    target: str,
    request: coordinator_pb2.AnnounceRequest,
    say: Callable[[str], None],
    on_peers: Callable[[list[tuple[str, int]]], None] = lambda peers: None,
) -> None:
    """Announce until cancelled; ``say`` gets one line whenever things change. Raises NotAuthorised."""
    retries = retry_delays()
    is_announced, said = False, ""
    while True:
        try:
            # A new channel each time: a channel that failed waits by itself, up to two minutes.
            async with open_channel(target) as channel:
                stub = coordinator_pb2_grpc.CoordinatorStub(channel)
                while True:
                    reply = await stub.Announce(request, timeout=CALL_SECONDS)
                    on_peers([(peer.host, peer.port) for peer in reply.peers])
                    if not is_announced:
                        say(f"announced to the coordinator at {target}")
                    is_announced, said, retries = True, "", retry_delays()
                    await asyncio.sleep(max(MIN_RENEWAL_SECONDS, reply.seconds / RENEWALS_PER_LEASE))
        except grpc.aio.AioRpcError as exc:
            is_announced = False
            error = error_from(exc)
            if isinstance(error, NotAuthorised):
                raise error from exc
            if (line := _trouble(target, error)) != said:
                say(line)
                said = line
        await asyncio.sleep(next(retries))


def retry_delays(random_fraction: Callable[[], float] = random.random) -> Iterator[float]:
    """Seconds between attempts: doubling to a bound, each shortened by chance so that seeders do not come in step."""
    longest = FIRST_RETRY_SECONDS
    while True:
        yield longest * (0.5 + 0.5 * random_fraction())
        longest = min(2 * longest, LONGEST_RETRY_SECONDS)


def address_towards(target: str) -> str:
    """This machine's address on the way to ``target``: what to announce when listening on every interface."""
    host, port = parse_endpoint(target, what="coordinator")
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # a UDP socket: picks the route, sends nothing
        return str(probe.getsockname()[0])


def _trouble(target: str, error: MeshError) -> str:
    what = "does not answer" if isinstance(error, Unreachable) else "refuses"
    return f"the coordinator at {target} {what} ({error}); seeding goes on, trying again"
