"""Options of every command that opens a BitTorrent session, said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.swarm.addresses import Profile

if TYPE_CHECKING:
    from mesh.swarm.settings import SwarmSettings

MaxUpload = Annotated[
    str | None,
    typer.Option(envvar="MESH_MAX_UPLOAD", help="Upload at most this much, e.g. 2MB/s, on the LAN too."),
]
MaxDownload = Annotated[
    str | None,
    typer.Option(envvar="MESH_MAX_DOWNLOAD", help="Download at most this much, e.g. 2MB/s, on the LAN too."),
]
ProfileOption = Annotated[
    Profile,
    typer.Option(
        envvar="MESH_PROFILE",
        help="lan: TCP, plain. wan: also answer uTP and hidden handshakes. auto: by address.",
    ),
]
Lsd = Annotated[bool, typer.Option("--lsd", help="Find peers on the local network. Open releases only.")]
Upnp = Annotated[bool, typer.Option("--upnp", help="Ask the router to let peers in (UPnP, NAT-PMP).")]
DhtBootstrap = Annotated[
    list[str] | None, typer.Option(help="HOST:PORT of a DHT node to begin with. Default: well-known ones.")
]
WebSeedOption = Annotated[
    list[str] | None,
    typer.Option("--web-seed", help="URL of the release's directory on a static server. Repeatable."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow addresses that strangers can reach; nothing is encrypted.")
]


@dataclass(frozen=True, slots=True)
class SwarmOptions:
    """As the user gave them."""

    listen: str | None
    max_upload: str | None = None
    max_download: str | None = None
    profile: Profile = Profile.AUTO
    dht: bool = False
    lsd: bool = False
    upnp: bool = False
    dht_bootstrap: tuple[str, ...] = ()
    insecure: bool = False

    @property
    def finds_peers(self) -> bool:
        return self.dht or self.lsd

    def settings(self, *, is_open: bool, far: bool = False) -> SwarmSettings:
        """``is_open``: of a release that anybody may have. ``far``: peers are on other machines. Raises UsageError."""
        from mesh.errors import UsageError
        from mesh.swarm.magnet import format_peer, parse_peer
        from mesh.swarm.settings import DHT_BOOTSTRAP, SwarmSettings
        from mesh.wire.channel import parse_endpoint, require_loopback

        if (self.finds_peers or self.upnp) and not is_open:
            raise UsageError(
                "--dht, --lsd and --upnp are for open releases; this one is private: its peers come from a coordinator"
            )
        everywhere = far or self.finds_peers or self.upnp
        listen = self.listen or ("0.0.0.0:0" if everywhere else "127.0.0.1:0")
        host, port = parse_endpoint(listen, what="--listen")
        if not is_open:  # an open release is there to be downloaded by strangers
            require_loopback(host, what="--listen", insecure=self.insecure)
        bootstrap = tuple(format_peer(parse_peer(node)) for node in self.dht_bootstrap)
        return SwarmSettings(
            listen_host="127.0.0.1" if host == "localhost" else host,
            port=port,
            max_upload_bytes_per_second=parse_rate(self.max_upload),
            max_download_bytes_per_second=parse_rate(self.max_download),
            profile=self.profile,
            dht=self.dht,
            lsd=self.lsd,
            port_mapping=self.upnp,
            dht_bootstrap=bootstrap or DHT_BOOTSTRAP,
        )


def parse_rate(text: str | None) -> int | None:
    """``2MB/s`` or ``2MB``. Raises UsageError."""
    from mesh.sizes import parse_size

    return None if text is None else parse_size(text.removesuffix("/s"))
