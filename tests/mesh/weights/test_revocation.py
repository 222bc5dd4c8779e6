"""The revocation list: what it forbids, when, and that no doubt ever permits anything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import ManifestInvalid
from mesh.weights.trust.revocation import (
    Action,
    Kind,
    Reason,
    ReleaseRevoked,
    Revocation,
    RevocationList,
    RevocationsStale,
    timestamp,
)
from tests.mesh.weights.example_manifest import example_full_manifest

NOW = 1_767_323_045.0
DAY = 24 * 3600.0
MANIFEST = example_full_manifest()
SIGNER = "ed25519:" + "ab" * 16
OTHER_KEY = "ed25519:" + "cd" * 16
EMPTY = RevocationList.first(NOW)
LAYER_0, LAYER_1 = MANIFEST.shard("layer", 0), MANIFEST.shard("layer", 1)


def entry(kind: Kind, id_: str, action: Action = Action.STOP_SERVING, effective: float = NOW) -> Revocation:
    return Revocation(kind, id_, Reason.DMCA, timestamp(effective), action, "case 7")


@pytest.mark.parametrize(
    ("kind", "id_"),
    [
        (Kind.RELEASE, MANIFEST.release_id),
        (Kind.KEY, SIGNER),
        (Kind.LICENSE, "LicenseRef-example"),
        (Kind.LICENSE, MANIFEST.license.text_digest),
        (Kind.INFOHASH, MANIFEST.torrent.infohash),
        (Kind.INFOHASH, MANIFEST.encodings[0].torrent.infohash),
    ],
)
def test_each_kind_forbids_the_whole_release_until_it_is_lifted(kind: Kind, id_: str) -> None:
    revoked = EMPTY.adding([entry(kind, id_)], NOW)
    with pytest.raises(ReleaseRevoked, match=rf"release tiny-model was revoked: {kind} .*case 7") as refusal:
        revoked.check(MANIFEST, SIGNER, MANIFEST.shards, NOW)
    assert refusal.value.exit_code == 5
    (hit,) = refusal.value.hits
    assert hit.shards == MANIFEST.shards
    lifted = revoked.lifting([(kind, id_)], NOW)
    lifted.check(MANIFEST, SIGNER, MANIFEST.shards, NOW)
    assert lifted.version > revoked.version > EMPTY.version


def test_a_revoked_shard_forbids_only_who_holds_it() -> None:
    revoked = EMPTY.adding([entry(Kind.SHARD, LAYER_0.root)], NOW)
    revoked.check(MANIFEST, SIGNER, [LAYER_1], NOW)
    (hit,) = revoked.hits(MANIFEST, SIGNER, [LAYER_0, LAYER_1], NOW)
    assert hit.shards == (LAYER_0,)


def test_a_twin_stands_for_its_shard() -> None:
    (twin,) = MANIFEST.encodings[0].shards
    revoked = EMPTY.adding([entry(Kind.SHARD, twin.root)], NOW)
    (hit,) = revoked.hits(MANIFEST, SIGNER, MANIFEST.shards, NOW)
    assert [ref.file for ref in hit.shards] == [twin.of]


def test_what_is_not_named_is_not_touched() -> None:
    others = [
        entry(Kind.RELEASE, "0" * 64),
        entry(Kind.KEY, OTHER_KEY),
        entry(Kind.LICENSE, "LicenseRef-exampl"),
        entry(Kind.SHARD, MANIFEST.release_id),  # an id of another kind
        entry(Kind.INFOHASH, LAYER_0.root),
    ]
    EMPTY.adding(others, NOW).check(MANIFEST, SIGNER, MANIFEST.shards, NOW)


def test_a_revoked_key_takes_whatever_it_signed_however_old_it_says_it_is() -> None:
    revoked = EMPTY.adding([entry(Kind.KEY, SIGNER)], NOW)
    backdated = replace(MANIFEST, created="2001-01-01T00:00:00Z")
    with pytest.raises(ReleaseRevoked):
        revoked.check(backdated, SIGNER, backdated.shards, NOW)
    revoked.check(backdated, OTHER_KEY, backdated.shards, NOW)  # signed again by a key that still counts


def test_an_entry_holds_from_its_time_on() -> None:
    later = EMPTY.adding([entry(Kind.KEY, SIGNER, effective=NOW + 60)], NOW)
    later.check(MANIFEST, SIGNER, MANIFEST.shards, NOW + 59)
    with pytest.raises(ReleaseRevoked):
        later.check(MANIFEST, SIGNER, MANIFEST.shards, NOW + 60)


def test_only_entries_that_say_so_condemn_bytes() -> None:
    revoked = EMPTY.adding(
        [entry(Kind.LICENSE, "LicenseRef-example"), entry(Kind.SHARD, LAYER_1.root, Action.DELETE)], NOW
    )
    with pytest.raises(ReleaseRevoked, match=r"revoked: shard .* and 1 more") as refusal:
        revoked.check(MANIFEST, SIGNER, MANIFEST.shards, NOW)
    assert refusal.value.condemned == (LAYER_1,)


def test_a_stale_list_permits_nothing() -> None:
    EMPTY.check(MANIFEST, SIGNER, MANIFEST.shards, NOW + 7 * DAY - 1)
    with pytest.raises(RevocationsStale, match="mesh revoke --refresh") as refusal:
        EMPTY.check(MANIFEST, SIGNER, MANIFEST.shards, NOW + 7 * DAY)
    assert refusal.value.exit_code == 5
    EMPTY.renewed(NOW + 6 * DAY).check(MANIFEST, SIGNER, MANIFEST.shards, NOW + 12 * DAY)


def test_no_list_outlives_seven_days() -> None:
    with pytest.raises(ManifestInvalid, match="7 days"):
        replace(EMPTY, expires=timestamp(NOW + 7 * DAY + 1))
    with pytest.raises(ManifestInvalid, match="7 days"):
        replace(EMPTY, expires=EMPTY.issued)


def test_lifting_what_is_not_revoked_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="is not revoked"):
        EMPTY.lifting([(Kind.KEY, SIGNER)], NOW)


def test_revoking_again_replaces_the_entry() -> None:
    twice = EMPTY.adding([entry(Kind.KEY, SIGNER)], NOW).adding([entry(Kind.KEY, SIGNER, Action.DELETE)], NOW)
    assert [found.action for found in twice.entries] == [Action.DELETE]


hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
entries = st.builds(
    Revocation,
    st.sampled_from([Kind.SHARD, Kind.RELEASE, Kind.INFOHASH]),
    hex32,
    st.sampled_from(Reason),
    st.integers(0, 4_000_000_000).map(timestamp),
    st.sampled_from(Action),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
)


@given(st.lists(entries, max_size=8), st.integers(0, 4_000_000_000))
def test_what_is_written_is_what_is_read(found: list[Revocation], now: int) -> None:
    revocations = RevocationList.first(now).adding(found, now)
    assert RevocationList.parse(revocations.to_bytes()) == revocations


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_manifest_invalid(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        RevocationList.parse(data)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"kind":"key"', b'"kind":"dream"', "newer version"),  # overlooking it would permit what it forbids
        (b'"version":2', b'"version":0', "version 0"),
        (b'"version":2', b'"version":2,"version":2', "duplicate key"),
        (b'"schema"', b'"extra":1,"schema"', "unknown field"),
        (b'"reason":"dmca"', b'"reason": "dmca"', "canonical"),
        (b"ed25519:", b"rsa:", "expected ed25519"),
        (b'"case_ref":"case 7"', b'"case_ref":"\\u001b[2J"', "printable"),
        (b"2026-01-02", b"2026-13-02", "RFC 3339"),
    ],
)
def test_a_list_in_doubt_is_refused(old: bytes, new: bytes, words: str) -> None:
    data = EMPTY.adding([entry(Kind.KEY, SIGNER)], NOW).to_bytes()
    assert old in data
    with pytest.raises(ManifestInvalid, match=words):
        RevocationList.parse(data.replace(old, new))
