"""A licence acceptance proves who accepted which texts of which release, and can be turned into nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import strict_json
from mesh.errors import IntegrityError, LicenseRefused, ManifestInvalid, SignatureInvalid, UsageError
from mesh.weights.trust.acceptance import (
    PAYLOAD_TYPE,
    LicenseAcceptance,
    open_acceptance,
    sign_acceptance,
)
from mesh.weights.trust.acceptance_book import AcceptanceBook
from mesh.weights.trust.manifest import LicenseRef
from mesh.weights.trust.signing import PAYLOAD_TYPE as MANIFEST_TYPE
from mesh.weights.trust.signing import PrivateKey, sign_payload
from tests.mesh.weights.example_manifest import example_full_manifest

NODE, OTHER = PrivateKey.from_seed(bytes(32)), PrivateKey.from_seed(b"\1" * 32)
NOW = 1_767_323_045.0
MANIFEST = example_full_manifest()
ACCEPTANCE = LicenseAcceptance.of(MANIFEST, NODE.public, NOW)
RECORD = sign_acceptance(ACCEPTANCE, NODE)

hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)


def test_a_record_tells_who_accepted_what_and_when() -> None:
    opened = open_acceptance(RECORD)
    assert (opened.node_id, opened.license.id) == (NODE.public.key_id, "LicenseRef-example")
    assert (opened.release_id, opened.accepted) == (MANIFEST.release_id, "2026-01-02T03:04:05Z")
    opened.check_for(MANIFEST, NODE.public.key_id)


@given(hex32, st.none() | hex32, st.none() | hex32, hex32)
def test_what_is_written_is_what_is_read(
    text: str, notice: str | None, policy: str | None, release: str
) -> None:
    license_ = LicenseRef("LicenseRef-x", text, True, notice, policy)
    acceptance = replace(ACCEPTANCE, license=license_, release_id=release)
    assert LicenseAcceptance.parse(acceptance.to_bytes()) == acceptance


def test_a_record_is_good_for_its_node_its_release_and_its_texts_alone() -> None:
    opened = open_acceptance(RECORD)
    with pytest.raises(LicenseRefused, match="each node accepts for itself"):
        opened.check_for(MANIFEST, OTHER.public.key_id)
    with pytest.raises(LicenseRefused, match="of the release that is served"):
        opened.check_for(replace(MANIFEST, created="2026-05-05T05:05:05Z"), NODE.public.key_id)
    for field in ("text_digest", "notice_digest", "policy_digest"):
        other = replace(MANIFEST.license, **{field: "0" * 64})
        changed = sign_acceptance(replace(ACCEPTANCE, license=other), NODE)
        with pytest.raises(LicenseRefused, match="of other texts"):
            open_acceptance(changed).check_for(MANIFEST, NODE.public.key_id)


def test_nobody_signs_for_another_node() -> None:
    with pytest.raises(UsageError):
        sign_acceptance(ACCEPTANCE, OTHER)
    forged = sign_payload(ACCEPTANCE.to_bytes(), PAYLOAD_TYPE, OTHER)
    with pytest.raises(IntegrityError, match="not trusted here"):
        open_acceptance(forged)
    claimed = strict_json.loads(forged, max_bytes=10_000)  # under the id of the key that did not sign
    claimed["signatures"][0]["keyid"] = NODE.public.key_id
    with pytest.raises(SignatureInvalid):
        open_acceptance(strict_json.dumps(claimed))


def test_a_signature_over_another_type_is_none() -> None:
    with pytest.raises(ManifestInvalid, match="envelope type"):
        open_acceptance(sign_payload(ACCEPTANCE.to_bytes(), MANIFEST_TYPE, NODE))


@given(st.integers(0, len(RECORD) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused(at: int, flip: int) -> None:
    changed = bytearray(RECORD)
    changed[at] ^= flip
    try:
        opened = open_acceptance(bytes(changed))
    except IntegrityError:
        return
    assert opened == ACCEPTANCE  # only the spelling of the envelope changed


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_an_integrity_error(data: bytes) -> None:
    for read in (open_acceptance, LicenseAcceptance.parse):
        with pytest.raises(IntegrityError):
            read(data)


def test_the_book_keeps_one_record_per_release_and_asks_anew_for_another_text(tmp_path: Path) -> None:
    book, node_id = AcceptanceBook(tmp_path), NODE.public.key_id
    assert book.records() == []
    assert list(tmp_path.iterdir()) == []  # reading writes nothing
    record = book.record_for(MANIFEST, NODE, NOW)
    assert book.record_for(MANIFEST, NODE, NOW + 9) == record
    fine_tune = replace(MANIFEST, created="2026-06-06T06:06:06Z")
    book.record_for(fine_tune, NODE, NOW + 9)
    assert [entry.release_id for entry in book.records()] == [MANIFEST.release_id, fine_tune.release_id]
    assert book.accepted_terms(node_id) == {
        ("LicenseRef-example", *_digests(MANIFEST.license)),
    }
    assert (
        book.accepted_terms(OTHER.public.key_id) == frozenset()
    )  # a copied directory speaks for nobody else


def test_a_changed_record_in_the_book_is_named(tmp_path: Path) -> None:
    book = AcceptanceBook(tmp_path)
    book.record_for(MANIFEST, NODE, NOW)
    (file,) = (tmp_path / "licenses").iterdir()
    file.write_bytes(file.read_bytes().replace(b'"payload":"ey', b'"payload":"ez'))
    with pytest.raises(IntegrityError, match=rf"{file.name}: .*delete it"):
        book.records()


def _digests(license_: LicenseRef) -> tuple[str, str | None, str | None]:
    return license_.text_digest, license_.notice_digest, license_.policy_digest
