"""``mesh catalog``: who may publish what, as its operator decides it; every change waits for the signatures it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesh.cli.catalog_output import tell_outcome, tell_status

if TYPE_CHECKING:
    from mesh.weights.trust.catalog.repository import Catalog
    from mesh.weights.trust.signing import PrivateKey

catalog = typer.Typer(
    help="Keep a catalog of releases: who may publish, what is current, whose keys count.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
publisher = typer.Typer(
    help="Let a publisher in, or out.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)
catalog.add_typer(publisher, name="publisher")

ONLINE_KEY = "catalog-online"

Directory = Annotated[Path, typer.Argument(help="The catalog's directory.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", help="Sign with this key, a file or a name; may be repeated. Default: all you keep."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@catalog.command()
def init(
    directory: Directory,
    root_key: Annotated[
        list[str],
        typer.Option(help="Public key of somebody who may sign the root; repeat it for each of them."),
    ],
    threshold: Annotated[int, typer.Option(help="How many of the root keys have to sign.")] = 1,
    targets_key: Annotated[
        list[str] | None, typer.Option(help="Public key that may let publishers in. Default: the root keys.")
    ] = None,
    takedown_key: Annotated[
        list[str] | None, typer.Option(help="Public key that may revoke. Default: the targets keys.")
    ] = None,
    online_key: Annotated[
        str,
        typer.Option(
            help="Key for snapshot and timestamp, kept by the coordinator; made if it is not there."
        ),
    ] = ONLINE_KEY,
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Make a catalog. Root and targets keys belong on machines, or sticks, that are not online."""
    from mesh.weights.trust.catalog.plan import CatalogPlan, RoleKeys
    from mesh.weights.trust.catalog.repository import Catalog
    from mesh.weights.trust.keyring import find_public_key, online_signing_key

    online = online_signing_key(online_key)
    root = tuple(find_public_key(name) for name in root_key)
    targets = tuple(find_public_key(name) for name in targets_key or ()) or root
    takedown = tuple(find_public_key(name) for name in takedown_key or ()) or targets
    plan = CatalogPlan(
        RoleKeys(root, threshold), RoleKeys(targets), RoleKeys(takedown), RoleKeys((online.public,))
    )
    made, outcome = Catalog.create(directory, plan, [*_signers(key), online])
    tell_outcome(made, outcome, as_json)


@publisher.command("add")
def publisher_add(
    directory: Directory,
    publisher_id: Annotated[str, typer.Argument(metavar="ID", help="Lower-case letters, digits and '-'.")],
    publisher_key: Annotated[
        list[str], typer.Option(help="Public key that the publisher signs with; may be repeated.")
    ],
    threshold: Annotated[int, typer.Option(help="How many of these keys have to sign.")] = 1,
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Let a publisher sign manifests under models/ID/, and nowhere else."""
    from mesh.weights.trust.catalog.plan import RoleKeys
    from mesh.weights.trust.keyring import find_public_key

    keys = RoleKeys(tuple(find_public_key(name) for name in publisher_key), threshold)
    changed = _open(directory)
    tell_outcome(changed, changed.add_publisher(publisher_id, keys, _signers(key)), as_json)


@publisher.command("remove")
def publisher_remove(
    directory: Directory,
    publisher_id: Annotated[str, typer.Argument(metavar="ID")],
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Believe nothing any more that this publisher signed or signs."""
    changed = _open(directory)
    tell_outcome(changed, changed.remove_publisher(publisher_id, _signers(key)), as_json)


@catalog.command()
def add(
    directory: Directory,
    release: Annotated[Path, typer.Argument(help="The release, as `mesh pack` wrote it.")],
    publisher_id: Annotated[str, typer.Option("--publisher", help="In whose name.")],
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Publish a release's signed manifest; one of the same name takes the place of the one before."""
    from mesh.weights.trust.catalog.placing import remember_place
    from mesh.weights.trust.signing import open_manifest

    changed, envelope = _open(directory), _envelope(release)
    outcome = changed.add_release(publisher_id, envelope, _signers(key))
    name = open_manifest(envelope, changed.publisher_trust(publisher_id)).name
    remember_place(directory, publisher_id, name, release)
    tell_outcome(changed, outcome, as_json)


@catalog.command()
def remove(
    directory: Directory,
    name: Annotated[str, typer.Argument(metavar="PUBLISHER/NAME")],
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """List a release no longer: nodes that serve it open no new session."""
    from mesh.errors import UsageError

    publisher_id, slash, model = name.partition("/")
    if not slash:
        raise UsageError(f"{name[:80]!r}: expected PUBLISHER/NAME, as `mesh catalog show` lists them")
    changed = _open(directory)
    tell_outcome(changed, changed.remove_release(publisher_id, model, _signers(key)), as_json)


@catalog.command()
def resign(
    directory: Directory,
    release: Annotated[Path, typer.Argument(help="The release whose manifest gets a new signature.")],
    publisher_id: Annotated[str, typer.Option("--publisher", help="In whose name.")],
    manifest_key: Annotated[str, typer.Option(help="The publisher's key to sign the manifest with.")],
    trust: Annotated[
        Path | None,
        typer.Option(envvar="MESH_TRUST", help="Key that signed it before. Default: every key you keep."),
    ] = None,
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Sign a release's manifest with another key. Its bytes, and so its release id, stay what they are."""
    from mesh.weights.trust.catalog.resigning import resign_release
    from mesh.weights.trust.keyring import find_key, trusted_keys

    changed, signer = _open(directory), find_key(manifest_key)
    outcome = resign_release(
        changed, publisher_id, release, signer, [*_signers(key), signer], trusted_keys(trust)
    )
    tell_outcome(changed, outcome, as_json)


@catalog.command()
def rotate(
    directory: Directory,
    role: Annotated[
        str, typer.Argument(help="root, targets, takedown, snapshot, timestamp or publisher-ID.")
    ],
    add: Annotated[list[str] | None, typer.Option(help="Public key that counts from now on.")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Fingerprint, ed25519:…, that counts no longer.")
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="How many have to sign from now on.")] = None,
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Change whose keys count for a role. A new root needs signatures of the old keys and of the new ones."""
    from mesh.errors import UsageError
    from mesh.weights.trust.keyring import find_public_key

    if not add and not remove and threshold is None:
        raise UsageError("nothing to rotate: give --add, --remove or --threshold")
    changed = _open(directory)
    outcome = changed.rotate(
        role,
        _signers(key),
        add=[find_public_key(name) for name in add or ()],
        remove=remove or (),
        threshold=threshold,
    )
    tell_outcome(changed, outcome, as_json)


@catalog.command()
def sign(directory: Directory, key: Keys = None, as_json: Json = False) -> None:
    """Add your signature to what waits for it; what has enough is published."""
    changed = _open(directory)
    tell_outcome(changed, changed.sign(_signers(key)), as_json)


@catalog.command()
def discard(directory: Directory, as_json: Json = False) -> None:
    """Forget changes that wait for signatures."""
    import json

    roles = _open(directory).discard()
    if as_json:
        typer.echo(json.dumps({"schema": "mesh.catalog.discard/1", "discarded": list(roles)}))
    else:
        typer.echo(f"discarded {', '.join(roles)}" if roles else "nothing was waiting")


@catalog.command()
def renew(
    directory: Directory,
    roles: Annotated[
        list[str] | None,
        typer.Argument(help="root, targets, takedown, publisher-ID. Default: what expires before long."),
    ] = None,
    key: Keys = None,
    as_json: Json = False,
) -> None:
    """Sign offline roles again before they expire."""
    changed = _open(directory)
    tell_outcome(changed, changed.renew(_signers(key), roles or ()), as_json)


@catalog.command()
def refresh(directory: Directory, key: Keys = None, as_json: Json = False) -> None:
    """Sign snapshot and timestamp anew, as a running coordinator does by itself."""
    from mesh.errors import NotFound
    from mesh.weights.trust.catalog.plan import Outcome

    changed = _open(directory)
    if changed.refresh(_signers(key)) is None:
        raise NotFound("none of these keys may sign snapshot and timestamp; give the online one with --key")
    tell_outcome(changed, Outcome(), as_json)


@catalog.command()
def show(directory: Directory, as_json: Json = False) -> None:
    """Draw roles, keys, thresholds and how long each signature is good for; list what is published."""
    tell_status(_open(directory), as_json)


def _open(directory: Path) -> Catalog:
    from mesh.weights.trust.catalog.repository import Catalog

    return Catalog.open(directory)


def _signers(names: list[str] | None) -> list[PrivateKey]:
    from mesh.weights.trust.keyring import signing_keys

    return list(signing_keys(names or ()))


def _envelope(release: Path) -> bytes:
    from mesh.weights.releases.release import MANIFEST_FILE, read_envelope

    return read_envelope(release / MANIFEST_FILE)
