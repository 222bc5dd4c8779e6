"""How our BitTorrent sessions behave, and why.

Knows libtorrent's setting names. Figures are measured on loopback (1 GiB, two cores) unless said otherwise.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import libtorrent as lt

from mesh.errors import UsageError
from mesh.swarm.addresses import Profile, choose_profile

# Bits of the alert mask: what the session acts on, and nothing that comes per block or per peer message.
_ALERTS = (
    lt.alert_category.error | lt.alert_category.status | lt.alert_category.storage | lt.alert_category.peer
)

MAX_QUEUED_BYTES = 8 << 20  # received and not yet on the disk
_EVERYWHERE = (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))


MAX_METADATA_BYTES = (
    4 << 20
)  # the only info dicts taken from peers are those of companions (``companion.py``)
# Well-known ways into the public DHT; any one that answers is enough.
DHT_BOOTSTRAP = ("dht.libtorrent.org:25401", "router.bittorrent.com:6881", "dht.transmissionbt.com:6881")


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """Where a session listens, whom it may find by itself and how much of the line it may take."""

    listen_host: str = "127.0.0.1"  # an IP address; 0.0.0.0 or :: for every interface
    port: int = 0  # 0: a free one
    # to and from all peers together, those on the LAN and on loopback too
    max_upload_bytes_per_second: int | None = None
    max_download_bytes_per_second: int | None = None
    profile: Profile = Profile.AUTO
    # Ways to find peers that nobody told us of. None of them is used for a private torrent, whatever is set here.
    dht: bool = False
    lsd: bool = False  # asks the local network by multicast (BEP 14)
    port_mapping: bool = False  # asks the router to let peers in (UPnP, NAT-PMP)
    dht_bootstrap: tuple[str, ...] = DHT_BOOTSTRAP  # HOST:PORT

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.listen_host)
        except ValueError as exc:
            raise UsageError(
                f"swarm address {self.listen_host!r}: expected an IP address, for example 127.0.0.1"
            ) from exc
        if not 0 <= self.port <= 65535:
            raise UsageError(f"swarm port {self.port}: expected 0 to 65535")
        for what, limit in (
            ("upload", self.max_upload_bytes_per_second),
            ("download", self.max_download_bytes_per_second),
        ):
            if limit is not None and limit < 1024:
                raise UsageError(f"{what} limit {limit} B/s: expected at least 1 KiB/s, for example 2MB/s")

    @property
    def is_wildcard(self) -> bool:
        return ipaddress.ip_address(self.listen_host).is_unspecified


def open_libtorrent(settings: SwarmSettings, port: int) -> lt.session:
    """A running libtorrent session that listens on ``settings.listen_host`` and ``port``."""
    host = settings.listen_host
    is_wan = choose_profile(settings.profile, host, dht=settings.dht) is Profile.WAN
    is_loopback = ipaddress.ip_address(host).is_loopback
    params = lt.session_params()
    params.settings = {
        "user_agent": "llama-mesh",
        "alert_mask": _ALERTS,
        "alert_queue_size": 10_000,
        # The port asked for or an error; never silently another one.
        "listen_interfaces": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        "max_retry_port_bind": 0,
        "listen_system_port_fallback": False,
        # Peers come from the coordinator and from nowhere else, unless an open release asks for more.
        "enable_dht": settings.dht,
        "enable_lsd": settings.lsd,
        "enable_upnp": settings.port_mapping,
        "enable_natpmp": settings.port_mapping,
        "dht_bootstrap_nodes": ",".join(settings.dht_bootstrap) if settings.dht else "",
        # A DHT on one machine is a test's or a demo's: all of its nodes have the same address.
        "dht_restrict_routing_ips": not is_loopback,
        "dht_restrict_search_ips": not is_loopback,
        # uTP is 21 to 34 times as slow as TCP: its congestion control runs in libtorrent's one network thread.
        # So we never dial with it. A far peer behind a NAT may have nothing else, so there we answer it.
        "enable_outgoing_utp": False,
        "enable_incoming_utp": is_wan,
        "mixed_mode_algorithm": 0,
        # RC4 hides the protocol, protects nothing and costs CPU: 2 is "disabled". Some providers slow down what looks
        # like BitTorrent: 1 is "both", and only the handshake is hidden.
        "out_enc_policy": 1 if is_wan else 2,
        "in_enc_policy": 1 if is_wan else 2,
        "allowed_enc_level": 3,
        "prefer_rc4": False,
        # Several nodes on one machine or behind one NAT are the normal case.
        "allow_multiple_connections_per_ip": True,
        "connections_limit": 500,
        # A node that came up after its neighbours were told of it is found within seconds, not after a minute;
        # libtorrent waits (failures + 1) times this, so a dead peer is asked ever more rarely.
        "min_reconnect_time": 1,
        "max_failcount": 100,
        "peer_connect_timeout": 5,
        "tick_interval": 100,  # ms; how long connect_peer may wait until it acts
        "torrent_connect_boost": 50,
        # Seconds of requests ahead. Enough to keep a fast line full; with ten, newcomers had asked a slow seeder for the
        # same pieces before one of them could tell the others (3.4 times the bytes for six of them).
        "request_queue_time": 3,
        # The first pieces too are the rarest, not random ones.
        "initial_picker_threshold": 0,
        "max_out_request_queue": 4000,
        "max_allowed_in_request_queue": 8000,
        "max_peer_recv_buffer_size": 5 << 20,
        "send_buffer_watermark": 3 << 20,
        "send_buffer_low_watermark": 1 << 20,
        "send_buffer_watermark_factor": 150,
        "send_not_sent_low_watermark": 512 << 10,
        "unchoke_slots_limit": -1,
        # What a kill may cost, and memory that belongs to the model. 4 MiB to 256 MiB are equally fast, but with 256
        # nothing at all is written for the first second.
        "max_queued_disk_bytes": MAX_QUEUED_BYTES,
        "aio_threads": 4,
        "hashing_threads": 2,
        "file_pool_size": 500,
        "max_metadata_size": MAX_METADATA_BYTES,
        "upload_rate_limit": settings.max_upload_bytes_per_second or 0,
        "download_rate_limit": settings.max_download_bytes_per_second or 0,
    }
    session = lt.session(params)
    if settings.max_upload_bytes_per_second or settings.max_download_bytes_per_second:
        # libtorrent puts LAN and loopback peers into a class of their own that the limits do not bind. A volunteer
        # who says 2 MB/s means 2 MB/s: every address goes to the global class.
        everybody = lt.ip_filter()
        for first, last in _EVERYWHERE:
            everybody.add_rule(first, last, 1 << session.global_peer_class_id)
        session.set_peer_class_filter(everybody)
    return session
