"""The rules that tie a manifest's fields together: what breaks one never becomes a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.errors import ManifestInvalid
from mesh.weights.manifest import EncodingRef, Manifest
from tests.mesh.weights.example_manifest import example_full_manifest

FULL = example_full_manifest()


def with_encoding(change: Callable[[EncodingRef], EncodingRef]) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, encodings=(change(manifest.encodings[0]),))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: replace(m, expires="2026-01-02T03:04:05Z"), "not after created"),
        (lambda m: replace(m, expires="soon"), "expires"),
        (lambda m: replace(m, license=replace(m.license, notice_digest="00")), "notice_digest"),
        (lambda m: replace(m, license=replace(m.license, policy_digest="")), "policy_digest"),
        (lambda m: replace(m, provenance=replace(m.provenance, arguments=("\x1b[2J",))), "printable"),
        (lambda m: replace(m, provenance=replace(m.provenance, arguments=("x",) * 33)), "at most 32"),
        (
            lambda m: replace(
                m, torrent=replace(m.torrent, hybrid=replace(m.torrent.hybrid, infohash_v1="00"))
            ),
            "infohash_v1",
        ),
        (lambda m: replace(m, encodings=m.encodings * 2), "twice"),
        (with_encoding(lambda e: replace(e, codec="Zip 1")), "codec"),
        (with_encoding(lambda e: replace(e, shards=())), "expected twins"),
        (with_encoding(lambda e: replace(e, shards=e.shards * 2)), "expected twins"),
        (
            with_encoding(lambda e: replace(e, shards=(replace(e.shards[0], of="elsewhere"),))),
            "expected twins",
        ),
        (with_encoding(lambda e: replace(e, shards=(replace(e.shards[0], file="../x"),))), "file"),
        (with_encoding(lambda e: replace(e, shards=(replace(e.shards[0], size=0),))), "out of bounds"),
        (with_encoding(lambda e: replace(e, torrent=FULL.torrent)), "twice"),
        (with_encoding(lambda e: replace(e, torrent=replace(e.torrent, private=False))), "private"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused_by_the_field(
    change: Callable[[Manifest], Manifest], says: str
) -> None:
    with pytest.raises(ManifestInvalid, match=says):
        change(FULL)


def test_what_a_manifest_leaves_out_is_not_in_its_bytes() -> None:
    plain = replace(
        FULL,
        expires=None,
        encodings=(),
        torrent=replace(FULL.torrent, hybrid=None),
        provenance=replace(FULL.provenance, arguments=()),
        license=replace(FULL.license, notice_digest=None, policy_digest=None),
    )
    for name in (b"expires", b"encodings", b"hybrid", b"arguments", b"notice_digest", b"policy_digest"):
        assert name in FULL.to_bytes()
        assert name not in plain.to_bytes()
    assert b"null" in plain.to_bytes()  # of a shard without a layer only
    assert plain.to_bytes().count(b"null") == plain.to_bytes().count(b'"layer":null')


def test_a_null_is_no_second_spelling_of_nothing() -> None:
    spelled = FULL.to_bytes().replace(b'"expires":"2027-01-02T03:04:05Z"', b'"expires":null')
    with pytest.raises(ManifestInvalid, match="expires"):
        Manifest.parse(spelled)
