"""The rules that tie a manifest's fields together: what breaks one never becomes a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mesh.errors import ManifestInvalid, UsageError
from mesh.layers import LayerRange
from mesh.weights.trust.manifest import EncodingRef, Manifest, ShardRef
from tests.mesh.weights.example_manifest import CONFIG, example_files_manifest, example_full_manifest

FULL = example_full_manifest()
FILES = example_files_manifest()


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


def with_file(index: int, **fields: object) -> Callable[[Manifest], Manifest]:
    def change(manifest: Manifest) -> Manifest:
        shards = list(manifest.shards)
        shards[index] = replace(shards[index], **fields)  # type: ignore[arg-type]
        return replace(manifest, shards=tuple(shards))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: replace(m, family="llama"), "a model has a config"),
        (lambda m: replace(m, model=CONFIG), "a model has a config"),
        (lambda m: replace(m, quantization="F32"), "a model has a config"),
        (lambda m: replace(m, family="mamba"), "llama, files"),
        (lambda m: replace(m, shards=m.shards[-1:]), "one file at least"),
        (lambda m: replace(m, shards=m.shards[:-1]), "then aux"),
        (lambda m: replace(m, shards=m.shards[::-1]), "then aux"),
        (lambda m: replace(m, shards=(m.shards[1], m.shards[0], *m.shards[2:])), "order of their paths"),
        (lambda m: replace(m, shards=(m.shards[0], *m.shards)), "one path"),
        (lambda m: replace(m, shards=(ShardRef("file", None, "DATA", 1, "1" * 64), *m.shards)), "one path"),
        (with_file(0, layer=0), "layer"),
        (with_file(0, file="../README.md"), "names between"),
        (with_file(0, file="nul"), "device"),
        (with_file(0, size=-1), "out of bounds"),
        (with_file(0, size=0), "out of bounds"),  # its root is not the empty file's
        (with_file(3, size=0), "out of bounds"),
        (with_file(3, file="release-aux.safetensors/x"), "shard file"),
        (with_file(3, file="readme.md"), "one path"),
    ],
)
def test_files_that_break_a_rule_are_refused(change: Callable[[Manifest], Manifest], says: str) -> None:
    with pytest.raises(ManifestInvalid, match=says):
        change(FILES)


def test_files_are_no_model_and_say_so_to_whoever_would_run_them() -> None:
    assert FULL.is_model
    assert not FILES.is_model
    for ask in (lambda: FILES.config, FILES.require_model, lambda: FILES.shards_for(LayerRange(0, 1))):
        with pytest.raises(UsageError, match="tiny-data holds files, not a model"):
            ask()


def test_files_have_neither_config_nor_quantization_in_their_bytes() -> None:
    assert b'"config"' not in FILES.to_bytes()
    assert b'"quantization"' not in FILES.to_bytes()
    assert Manifest.parse(FILES.to_bytes()) == FILES
