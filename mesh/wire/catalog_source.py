"""The files of the catalog that a coordinator serves, for whoever has a join token; each is checked by who asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import grpc.aio

from mesh.wire import coordinator_pb2, coordinator_pb2_grpc
from mesh.wire.channel import open_channel
from mesh.wire.status import error_from

CALL_SECONDS = 10.0


def coordinator_source(target: str, token_secret: bytes) -> Callable[[str], Iterator[bytes]]:
    """A ``catalog.sources.Source`` that may be read in any thread without an event loop."""

    def read(name: str) -> Iterator[bytes]:
        yield asyncio.run(_file(target, token_secret, name))

    return read


async def _file(target: str, token_secret: bytes, name: str) -> bytes:
    request = coordinator_pb2.CatalogFileRequest(token_secret=token_secret, name=name)
    async with open_channel(target) as channel:
        try:
            reply = await coordinator_pb2_grpc.CoordinatorStub(channel).CatalogFile(
                request, timeout=CALL_SECONDS
            )
        except grpc.aio.AioRpcError as exc:
            raise error_from(exc) from exc
    return bytes(reply.data)
