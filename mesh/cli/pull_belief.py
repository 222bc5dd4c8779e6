"""Which release a name of a catalog is, and whom a pull believes: keys, a catalog, or what the join token pins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mesh.belief import Belief
from mesh.cli.believing import believe_token, believer, catalog_root, open_catalog
from mesh.errors import NotFound
from mesh.pulling.finding import Found
from mesh.pulling.source import Coordinator, Directory, Listed, Source, Web
from mesh.swarm.magnet import format_peer, parse_peer
from mesh.token import JoinToken
from mesh.weights.trust.catalog.names import is_catalog_root
from mesh.weights.trust.catalog.placing import find_place
from mesh.weights.trust.keyring import read_trust


@dataclass(frozen=True, slots=True)
class Believing:
    """As the user gave it."""

    trust: Path | None
    catalog: str | None  # DIR, URL or HOST:PORT
    token: str | None

    def belief(self, source: Source, found: Found) -> Belief:
        """Of one release; asks the catalog there is. Raises IntegrityError, NotFound, UsageError and kin."""
        if self.catalog is not None or not isinstance(source, Coordinator):
            return believer(self.trust, self.catalog, self.token)(found.envelope)
        if self.trust is None:
            assert self.token is not None
            return believe_token(
                JoinToken.parse(self.token), source.target, found.trust_root or b"", found.envelope
            )
        # The user's own file counts more than what the token pins.
        if is_catalog_root(read_trust(self.trust)):
            return believer(self.trust, source.target, self.token)(found.envelope)
        return believer(self.trust, None)(found.envelope)

    def belief_may_end(self, source: Source) -> bool:
        """Whether a catalog may take back what was believed; keys are believed for ever."""
        return self.catalog is not None or isinstance(source, Coordinator)

    def look_up(self, listed: Listed, web_seeds: tuple[str, ...]) -> tuple[Source, str]:
        """Where to get what the catalog calls that, and the id it must have. Raises NotFound and kin."""
        catalog = self.catalog
        assert catalog is not None
        release = open_catalog(catalog_root(self.trust), catalog, self.token).find_name(listed.name)
        name, release_id = f"{release.publisher}/{release.manifest.name}", release.manifest.release_id
        return self._place(catalog, name, web_seeds, release_id), release_id

    def _place(self, catalog: str, name: str, web_seeds: tuple[str, ...], release_id: str) -> Source:
        """A catalog says what is published, not where; whoever keeps it has the release, or the user names a web seed."""
        if web_seeds:
            return Web(web_seeds[0])
        if Path(catalog).is_dir():
            try:
                return Directory(find_place(Path(catalog), name))
            except NotFound:
                pass  # packed on another machine
        elif not catalog.startswith(("http://", "https://")):
            return Coordinator(format_peer(parse_peer(catalog)), release_id)
        raise NotFound(
            f"{name} is in the catalog, which does not say where its files are: add --web-seed https://…/ of its"
            " directory, or pull its magnet link with the same --catalog"
        )
