"""How gRPC channels and servers are set up, in one place.

Values and their reasons come from measurement: the time until a silent peer is noticed is governed by
``grpc.http2.ping_timeout_ms`` (its default is a minute), not by ``keepalive_timeout_ms``; a server that does not permit
the pings ends the connection as abuse; the BDP probe stays on, without it a WAN link carries half.
"""

from __future__ import annotations

import errno
import ipaddress
import socket

import grpc
import grpc.aio

from mesh.errors import MeshError, UsageError

MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # an offer carries the .torrent; frames of steps stay near 1 MiB
KEEPALIVE_MS = 1000
PING_TIMEOUT_MS = 1000  # a frozen peer is noticed within both together; a killed one in milliseconds

_COMMON = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def server_options() -> list[tuple[str, int]]:
    return [
        *_COMMON,
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),  # two servers on one port would share it silently; we want the error
    ]


def open_channel(target: str) -> grpc.aio.Channel:
    """A channel to ``host:port``; it connects when first used and reconnects by itself."""
    # A proxy from the environment is for the web, not for a neighbour.
    return grpc.aio.insecure_channel(target, options=[*_COMMON, ("grpc.enable_http_proxy", 0)])


def parse_endpoint(text: str, *, what: str = "address") -> tuple[str, int]:
    """``"127.0.0.1:7443"`` or ``"[::1]:7443"`` -> (host, port). Port 0 means: choose a free one. Raises UsageError."""
    host, separator, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{what} {text!r}: expected HOST:PORT, for example 127.0.0.1:7443")
    return host, int(port)


def format_endpoint(host: str, port: int) -> str:
    """The inverse of ``parse_endpoint``."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(host: str, *, what: str, insecure: bool) -> None:
    """Until links are authenticated and encrypted, refuse to bind where strangers could reach. Raises UsageError."""
    if not insecure and not is_loopback(host):
        raise UsageError(
            f"{what} {host}: links are neither encrypted nor authenticated yet, so only loopback is allowed; "
            "use 127.0.0.1, or --insecure inside a network you alone control"
        )


def listening_socket(endpoint: tuple[str, int], *, flag: str) -> socket.socket:
    """Raises MeshError, saying which flag to change, if nothing can listen there."""
    family = socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET
    try:
        return socket.create_server(endpoint, family=family, backlog=1024)
    except OSError as exc:
        reason = "the port is in use" if exc.errno == errno.EADDRINUSE else (exc.strerror or str(exc))
        raise _cannot_listen(endpoint, reason, flag) from exc


def bind_server(server: grpc.aio.Server, endpoint: tuple[str, int], *, flag: str) -> int:
    """Bind a gRPC server, return its port. Raises MeshError as ``listening_socket`` does."""
    listening_socket(endpoint, flag=flag).close()  # gRPC itself says in many lines that a port is taken
    try:
        return int(server.add_insecure_port(format_endpoint(*endpoint)))
    except RuntimeError as exc:
        raise _cannot_listen(endpoint, str(exc), flag) from exc


def _cannot_listen(endpoint: tuple[str, int], reason: str, flag: str) -> MeshError:
    return MeshError(
        f"cannot listen on {format_endpoint(*endpoint)}: {reason}; stop what uses it, "
        f"or choose another with {flag} HOST:PORT"
    )
