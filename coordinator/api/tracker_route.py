"""``GET /announce/<passkey>``: BEP 3 for BitTorrent clients. Refusals too are 200 and bencoded, as clients expect."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from coordinator.tracker import Tracker


def tracker_routes(tracker: Tracker) -> APIRouter:
    routes = APIRouter()

    # libtorrent asks a tracker on loopback only where the path begins with /announce.
    @routes.get("/announce/{passkey}", include_in_schema=False)
    async def announce(passkey: str, request: Request) -> Response:
        host = request.client.host if request.client is not None else ""
        body = await tracker.announce(passkey, host, request.scope["query_string"])
        return Response(body, media_type="text/plain")

    return routes
