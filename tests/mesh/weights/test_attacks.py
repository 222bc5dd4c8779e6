"""Every attack on weights that we know of, and the test that holds it off: ``ROWS``.

A row's test lives where what it attacks is tested; the rows without another home are tested here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mesh.errors import ShardCorrupt, SignatureInvalid
from mesh.verification import Outcome, verify_release
from mesh.weights.releases.release import Release
from mesh.weights.releases.store import ShardStore
from mesh.weights.shards import shard as shards
from mesh.weights.shards.shard import TensorSource, read_shard, write_shard
from mesh.weights.trust.manifest import Provenance
from mesh.weights.trust.signing import open_manifest, sign_manifest
from tests.support.releases import PackedRelease, pack_tiny

TESTS = Path(__file__).parents[2]
HERE = "mesh/weights/test_attacks.py"
CATALOG = "mesh/weights/test_catalog_attacks.py"
ROWS = (
    ("rollback of a manifest", CATALOG, "test_targets_that_are_rolled_back_are_refused_even_with_the_online_key"),
    ("rollback of the timestamp", CATALOG, "test_timestamp_that_is_rolled_back_is_refused"),
    ("freeze", CATALOG, "test_frozen_catalog_is_refused_once_it_has_expired"),
    ("mix-and-match of metadata", CATALOG, "test_versions_that_never_belonged_together_are_refused"),
    ("mix-and-match of layers", "mesh/weights/test_shard.py", "test_a_shard_in_the_place_of_another_is_refused"),
    ("fast-forward", CATALOG, "test_rotating_the_online_key_undoes_a_fast_forward"),
    ("wrong publisher", CATALOG, "test_publisher_cannot_speak_for_another"),
    ("stolen key after removal", CATALOG, "test_stolen_key_is_worth_nothing_once_its_publisher_is_removed"),
    ("tampered shard on disk", "mesh/weights/test_shard.py", "test_any_flipped_bit_is_refused_by_name"),
    ("tampered shard of a peer", "mesh/swarm/test_fetch_failures.py", "test_flipped_byte_on_a_seeders_disk_is_never_delivered"),
    ("spoiled after the download", "mesh/swarm/test_fetch_failures.py", "test_file_spoiled_after_the_download_is_refused_and_not_kept"),
    ("tampered between check and load", HERE, "test_file_that_is_swapped_after_its_check_is_not_what_is_loaded"),
    ("tampered while it is read", HERE, "test_what_is_used_is_the_memory_that_was_hashed"),
    ("signature over another type", "mesh/weights/test_signing.py", "test_a_signature_over_another_type_is_refused"),
    ("trusted key only claimed", "mesh/weights/test_signing.py", "test_claiming_a_trusted_key_is_not_signing_with_it"),
    ("duplicate JSON keys in a header", "mesh/weights/test_shard.py", "test_a_duplicate_tensor_name_is_refused"),
    ("malformed JSON once signed", "mesh/weights/test_signing.py", "test_a_signed_payload_is_still_parsed_with_suspicion"),
    ("zstd bomb", "mesh/weights/test_encoding.py", "test_hostile_twin_is_refused_in_little_memory"),
    ("hostile path in files", "mesh/weights/test_file_paths.py", "test_a_path_that_some_system_reads_otherwise_is_refused"),
    ("hostile torrent tree", "mesh/swarm/test_metainfo.py", "test_info_dict_that_differs_from_the_manifest_is_refused"),
    ("torrent that names trackers or seeds", "mesh/swarm/test_metainfo.py", "test_key_that_names_another_source_is_refused_by_name"),
    ("symbolic link in a release", "mesh/test_verification.py", "test_symbolic_link_in_a_release_is_refused"),
    ("pipe in place of a shard", "mesh/weights/test_shard_check.py", "test_what_is_no_plain_file_is_neither_followed_nor_waited_for"),
    ("symbolic link in the way of a fetch", "mesh/swarm/test_fetching.py", "test_what_lies_in_the_way_is_replaced_and_no_symlink_is_followed"),
    ("huge or overflowing tensors, header tricks", "mesh/weights/test_shard.py", "test_a_signed_header_that_breaks_a_rule_is_refused"),
    ("huge header", "mesh/weights/test_shard.py", "test_an_impossible_header_length_is_refused_before_it_is_read"),
    ("malicious pickle", "mesh/weights/test_pickle_file.py", "test_an_exploit_runs_nothing_and_is_named"),
    ("poisoned quantisation", HERE, "test_scales_that_are_no_numbers_are_found_although_they_are_signed"),
    ("poisoned provenance", HERE, "test_provenance_cannot_be_changed_without_the_key"),
    ("stripped licence", "mesh/test_publishing.py", "test_a_shard_of_another_license_is_refused"),
    ("stolen key, revoked by the list", "mesh/weights/test_revocation.py", "test_a_revoked_key_takes_whatever_it_signed_however_old_it_says_it_is"),
    ("stolen key, backdated after its revocation", "integration/test_revocation.py", "test_a_stolen_key_signs_nothing_that_counts_after_its_revocation"),
    ("served on although revoked", "integration/test_revocation.py", "test_what_is_revoked_while_it_is_served_ends_within_one_heartbeat"),
    ("node with an older list", "integration/test_revocation.py", "test_a_node_with_an_older_list_than_the_coordinators_is_sent_back"),
    ("stolen key, old signature beside the bytes", "mesh/test_verify_catalog.py", "test_release_that_was_signed_anew_is_verified_under_the_key_of_today"),
    ("revoked, verified all the same", "mesh/test_verify_catalog.py", "test_what_was_revoked_fails_by_its_entry"),
    ("rollback of the revocation list", CATALOG, "test_list_that_is_rolled_back_is_refused_even_with_the_online_key"),
    ("revocation list held back", "mesh/test_verify_catalog.py", "test_stale_list_permits_nothing"),
    ("revocation list of another role", "mesh/test_verify_catalog.py", "test_list_that_the_takedown_role_did_not_sign_is_refused"),
    ("acceptance forged by the coordinator", "mesh/test_fleet.py", "test_acceptance_that_the_coordinator_wrote_itself_is_a_lie"),
    ("acceptance by another's key", "mesh/weights/test_acceptance.py", "test_nobody_signs_for_another_node"),
    ("replayed proof", "mesh/weights/test_proof.py", "test_replayed_answer_is_refused"),
    ("proof by another's key", "mesh/weights/test_proof.py", "test_answer_of_another_key_is_refused"),
)  # fmt: skip


@pytest.mark.parametrize(("attack", "file", "test"), ROWS, ids=[row[0] for row in ROWS])
def test_row_has_its_test(attack: str, file: str, test: str) -> None:
    assert re.search(rf"^(async )?def {test}\(", (TESTS / file).read_text(), re.MULTILINE), attack


@pytest.fixture
def packed(tmp_path: Path) -> PackedRelease:
    return pack_tiny(tmp_path, num_layers=1)


def test_file_that_is_swapped_after_its_check_is_not_what_is_loaded(
    packed: PackedRelease, tmp_path: Path
) -> None:
    release, ref = packed.open(), packed.manifest.shard("layer", 0)
    path = shutil.copy(release.shard_path(ref), tmp_path / "fetched")
    blob = ShardStore(tmp_path / "store").adopt(path, ref)  # checked here
    blob.chmod(0o644)
    blob.write_bytes(bytes(ref.size))
    with pytest.raises(ShardCorrupt):
        read_shard(blob, ref)


def test_what_is_used_is_the_memory_that_was_hashed(
    packed: PackedRelease, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes after it was read and before its root is compared: what is used is what was hashed."""
    ref = packed.manifest.shard("layer", 0)
    path = Path(shutil.copy(packed.open().shard_path(ref), tmp_path / "shard"))
    honest, inner = path.read_bytes(), shards._check_root
    swapped = threading.Event()

    def swap(*args: object) -> None:
        path.write_bytes(bytes(ref.size))
        swapped.set()
        inner(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_check_root", swap)
    loaded = read_shard(path, ref)
    assert swapped.is_set()
    assert bytes(loaded.data) == honest[-len(loaded.data) :]


def test_scales_that_are_no_numbers_are_found_although_they_are_signed(packed: PackedRelease) -> None:
    """A publisher's own mistake, or somebody's who got hold of the quantiser: every hash is right."""
    release = packed.open()
    ref = packed.manifest.shard("layer", 0)
    path = release.shard_path(ref)
    honest = read_shard(path, ref)
    spoiled = {name: bytes(honest.bytes_of(name)) for name in honest.tensors}
    norm = honest.tensors["input_layernorm.weight"]
    infinity = {"F32": np.float32(np.inf).tobytes(), "BF16": b"\x80\x7f", "F16": b"\x00\x7c"}[norm.type]
    spoiled[norm.name] = infinity + spoiled[norm.name][len(infinity) :]
    path.unlink()
    sources = [
        TensorSource(info.name, info.type, info.shape, lambda name=info.name: iter((spoiled[name],)))  # type: ignore[misc]
        for info in honest.tensors.values()
    ]
    written = write_shard(path, "layer", 0, sources, honest.license_digest)
    bad = replace(ref, root=written.root.hex())
    manifest = replace(
        packed.manifest, shards=tuple(bad if each == ref else each for each in packed.manifest.shards)
    )
    signed = Release(release.directory, manifest, sign_manifest(manifest, packed.key), release.torrent)
    found = verify_release(signed, packed.trust, deep=True)
    assert found.problems == {}
    contents = next(step for step in found.steps if step.name == "contents")
    assert contents.outcome is Outcome.FAILED
    assert "infinity or NaN in input_layernorm.weight" in contents.detail


def test_provenance_cannot_be_changed_without_the_key(packed: PackedRelease) -> None:
    manifest = packed.manifest
    poisoned = replace(
        manifest, provenance=Provenance("other.gguf", hashlib.sha256(b"other").hexdigest(), "tool")
    )
    envelope = json.loads(packed.open().envelope)
    envelope["payload"] = base64.b64encode(poisoned.to_bytes()).decode()
    with pytest.raises(SignatureInvalid):
        open_manifest(json.dumps(envelope).encode(), packed.trust)
