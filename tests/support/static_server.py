"""A static HTTP server on loopback, the way a bucket is one: ranges, and nothing else. It can also misbehave.

with static_server(directory) as server:
    ... server.url ...
    assert server.bytes_sent
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_CHUNK = 64 * 1024


class StaticServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path, *, ranges: bool, lies: bool, dies_after: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory, self.ranges, self.lies, self.dies_after = directory, ranges, lies, dies_after
        self.bytes_sent = 0  # of bodies, to everybody
        self.requests: list[str] = []  # paths
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up, that is what they are here for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StaticServer

    def do_GET(self) -> None:
        server, path = self.server, unquote(self.path).lstrip("/")
        server.requests.append(path)
        file = server.directory / path
        if not file.is_file() or ".." in path:
            self.send_error(404)
            return
        size = file.stat().st_size
        asked = _RANGE.fullmatch(self.headers.get("Range", "")) if server.ranges else None
        start = int(asked[1]) if asked else 0
        stop = int(asked[2]) + 1 if asked and asked[2] else size
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        with file.open("rb") as opened:
            opened.seek(start)
            self._send(opened, stop - start)

    def _send(self, opened: Any, left: int) -> None:
        server = self.server
        while left:
            data = opened.read(min(_CHUNK, left))
            if server.lies:
                data = bytes(len(data))
            with server.lock:
                if server.dies_after is not None and server.bytes_sent + len(data) > server.dies_after:
                    self.close_connection = True
                    self.connection.close()
                    return
                server.bytes_sent += len(data)
            self.wfile.write(data)
            left -= len(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def static_server(
    directory: Path, *, ranges: bool = True, lies: bool = False, dies_after: int | None = None
) -> Iterator[StaticServer]:
    server = StaticServer(directory, ranges=ranges, lies=lies, dies_after=dies_after)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
