"""Only bytes that a trusted key signed become a manifest; everything else ends in an error that says why."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh import strict_json
from mesh.errors import IntegrityError, ManifestInvalid, NotFound, SignatureInvalid, UnknownKey, UsageError
from mesh.weights.trust.keyring import find_key, new_key, public_keys, trusted_keys
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import (
    MAX_ENVELOPE_BYTES,
    PAYLOAD_TYPE,
    PrivateKey,
    TrustRoot,
    _pae,
    open_manifest,
    sign_manifest,
    signer_of,
)
from tests.mesh.weights.example_manifest import example_full_manifest, example_manifest

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(32))
TRUST = TrustRoot.of(KEY.public)
MANIFEST = example_manifest()
FULL_MANIFEST = example_full_manifest()
ENVELOPE = sign_manifest(MANIFEST, KEY)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(ENVELOPE), **fields}).encode()


def test_what_was_signed_is_what_is_opened() -> None:
    assert open_manifest(ENVELOPE, TRUST) == MANIFEST
    assert signer_of(ENVELOPE, TRUST) == KEY.public


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UnknownKey, match=KEY.public.key_id) as caught:
        open_manifest(ENVELOPE, TrustRoot.of(OTHER.public))
    assert caught.value.key_id == KEY.public.key_id


def test_a_changed_payload_does_not_fit_its_signature() -> None:
    payload = base64.b64encode(example_manifest("another").to_bytes()).decode()
    with pytest.raises(SignatureInvalid, match="does not fit"):
        open_manifest(changed(payload=payload), TRUST)


def test_claiming_a_trusted_key_is_not_signing_with_it() -> None:
    forged = json.loads(sign_manifest(MANIFEST, OTHER))
    forged["signatures"][0]["keyid"] = KEY.public.key_id
    with pytest.raises(SignatureInvalid):
        open_manifest(json.dumps(forged).encode(), TRUST)


def test_one_trusted_signature_among_strangers_is_enough() -> None:
    strangers = json.loads(sign_manifest(MANIFEST, OTHER))["signatures"]
    both = changed(signatures=strangers + json.loads(ENVELOPE)["signatures"])
    assert open_manifest(both, TRUST) == MANIFEST


def test_a_signature_over_another_type_is_refused() -> None:
    payload = MANIFEST.to_bytes()
    signature = {
        "keyid": KEY.public.key_id,
        "sig": base64.b64encode(KEY.sign(_pae("text/plain", payload))).decode(),
    }
    with pytest.raises(SignatureInvalid):
        open_manifest(changed(signatures=[signature]), TRUST)
    with pytest.raises(ManifestInvalid, match="text/plain"):
        open_manifest(changed(payloadType="text/plain", signatures=[signature]), TRUST)


def test_pae_is_that_of_the_dsse_specification() -> None:
    assert _pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        ENVELOPE[:-20],
        b"\xff" + ENVELOPE,
        ENVELOPE.replace(b'"payload":', b'"payload":"","payload":', 1),
        changed(extra=1),
        changed(payload=7),
        changed(payload="*"),
        changed(payloadType=None),
        changed(signatures=[]),
        changed(signatures=[{}]),
        changed(signatures=[{"keyid": 1, "sig": ""}]),
        changed(signatures=[{"keyid": "k" * 101, "sig": ""}]),
        changed(signatures=[{"keyid": "\ud800", "sig": ""}]),
        changed(signatures=json.loads(ENVELOPE)["signatures"] * 17),
        b" " * (MAX_ENVELOPE_BYTES + 1),
    ],
)
def test_a_malformed_envelope_is_refused_before_its_payload_is_read(envelope: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        open_manifest(envelope, TRUST)


def test_a_signed_payload_is_still_parsed_with_suspicion() -> None:
    payload = b'{"schema":"llama-mesh.manifest/1"}'
    signature = {
        "keyid": KEY.public.key_id,
        "sig": base64.b64encode(KEY.sign(_pae(PAYLOAD_TYPE, payload))).decode(),
    }
    with pytest.raises(ManifestInvalid, match="missing"):
        open_manifest(changed(payload=base64.b64encode(payload).decode(), signatures=[signature]), TRUST)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_any_changed_byte_of_an_envelope_gives_the_same_manifest_or_our_error(at: int, mask: int) -> None:
    damaged = bytearray(ENVELOPE)
    damaged[at] ^= mask
    try:
        opened = open_manifest(bytes(damaged), TRUST)
    except IntegrityError:
        return
    assert opened == MANIFEST


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_with_our_errors(data: bytes) -> None:
    for parse in (
        lambda: open_manifest(data, TRUST),
        lambda: Manifest.parse(data),
        lambda: TrustRoot.from_bytes(data),
    ):
        with pytest.raises(IntegrityError):
            parse()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**19), 10**19)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [prefix] if prefix else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += paths_of(inner, (*prefix, key))
    return found


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(paths_of(json.loads(FULL_MANIFEST.to_bytes()))), JSON_VALUES)
def test_any_value_anywhere_in_a_manifest_is_read_exactly_or_refused(
    path: tuple[Any, ...], value: Any
) -> None:
    top = json.loads(FULL_MANIFEST.to_bytes())
    inner = top
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    try:
        data = strict_json.dumps(top)
    except UnicodeEncodeError:  # a lone surrogate has no bytes but as an escape
        data = json.dumps(top).encode()
    try:
        manifest = Manifest.parse(data)
    except ManifestInvalid as exc:
        assert "\n" not in str(exc)
        return
    assert manifest.to_bytes() == data


def test_a_duplicate_role_and_layer_is_refused_by_name() -> None:
    top = json.loads(MANIFEST.to_bytes())
    top["shards"][2]["layer"] = 0
    with pytest.raises(ManifestInvalid, match="layer 0 twice"):
        Manifest.parse(strict_json.dumps(top))


def test_trust_root_round_trips_and_its_digest_is_of_the_exact_bytes() -> None:
    root = TrustRoot.of(KEY.public, OTHER.public, KEY.public)
    again = TrustRoot.from_bytes(root.to_bytes())
    assert again == root
    assert set(again.keys) == {KEY.public.key_id, OTHER.public.key_id}
    spaced = TrustRoot.from_bytes(root.to_bytes() + b"\n")
    assert spaced.keys == root.keys
    assert spaced.digest() != root.digest()


def test_a_trust_root_whose_fingerprint_lies_is_refused() -> None:
    lying = TRUST.to_bytes().replace(KEY.public.key_id.encode(), OTHER.public.key_id.encode())
    with pytest.raises(ManifestInvalid, match=KEY.public.key_id):
        TrustRoot.from_bytes(lying)


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    KEY.save(path)
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert PrivateKey.load(path).public == KEY.public
    with pytest.raises(UsageError, match="never overwritten"):
        OTHER.save(path)
    assert path.read_bytes() == before


def test_openssl_reads_our_key_and_we_read_openssls(tmp_path: Path) -> None:
    if subprocess.run(["which", "openssl"], capture_output=True, check=False).returncode:
        pytest.skip("no openssl command")
    KEY.save(tmp_path / "ours.key")
    subprocess.run(["openssl", "pkey", "-in", tmp_path / "ours.key", "-noout"], check=True)
    theirs = tmp_path / "theirs.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", theirs], check=True)
    assert PrivateKey.load(theirs).public.key_id.startswith("ed25519:")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.key").write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.key"):
        PrivateKey.load(tmp_path / "bad.key")


def test_a_new_key_is_found_by_name_and_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(NotFound, match="--trust"):
        trusted_keys(None)
    private, public = new_key("alice")
    assert find_key("alice").public == find_key(str(private)).public
    assert [path for path, _ in public_keys()] == [public]
    assert set(trusted_keys(None).keys) == {find_key("alice").public.key_id}
    before = private.read_bytes(), public.read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        new_key("alice")
    assert (private.read_bytes(), public.read_bytes()) == before
    for name in ("../evil", "", "bob"):
        with pytest.raises(NotFound, match="mesh keys new"):
            find_key(name)
    with pytest.raises(UsageError, match="expected letters"):
        new_key("../evil")
