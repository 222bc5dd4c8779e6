"""The registry of a store: several processes, quotas, pins, and what a kill may leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.cli.main import main
from mesh.errors import IntegrityError, NotEnoughDisk, NotFound, UsageError
from mesh.weights.releases.holdings import HeldRelease, Holdings
from mesh.weights.releases.store import ShardStore
from mesh.weights.trust.manifest import ShardRef
from mesh.weights.trust.signing import PrivateKey, sign_manifest
from tests.support.clock import ManualClock
from tests.support.synthetic_release import KIB, SyntheticRelease, write_release

KEY = PrivateKey.generate()
SIZES = (40 * KIB, 100 * KIB, 60 * KIB, 30 * KIB, 20 * KIB)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    return write_release(tmp_path_factory.mktemp("base"), SIZES, name="base")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> SyntheticRelease:
    """A fine-tune of ``base``: another head and aux, everything before them the same bytes."""
    sizes = (*SIZES[:3], 34 * KIB, 24 * KIB)
    return write_release(tmp_path_factory.mktemp("tuned"), sizes, name="tuned")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def holdings(tmp_path: Path, clock: ManualClock) -> Holdings:
    return Holdings(ShardStore(tmp_path / "store"), clock=clock)


def put(
    holdings: Holdings, release: SyntheticRelease, refs: tuple[ShardRef, ...] | None = None
) -> HeldRelease:
    """As a fetch would: register, link into the download, adopt."""
    refs = release.manifest.shards if refs is None else refs
    with hold(holdings, release, refs) as save_path:
        for ref in refs:
            target = save_path / release.manifest.torrent.name / ref.file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not holdings.store.link(ref, target):
                target.write_bytes(release.path(ref).read_bytes())
                holdings.store.adopt(target, ref)
    return holdings.find(release.manifest.release_id)


def hold(holdings: Holdings, release: SyntheticRelease, refs: tuple[ShardRef, ...]):  # type: ignore[no-untyped-def]
    return holdings.hold(sign_manifest(release.manifest, KEY), release.torrent, release.manifest, refs)


def total(release: SyntheticRelease) -> int:
    return release.manifest.total_bytes


def test_fixture_shares_what_a_fine_tune_shares(base: SyntheticRelease, tuned: SyntheticRelease) -> None:
    same = {ref.root for ref in base.manifest.shards} & {ref.root for ref in tuned.manifest.shards}
    assert same == {ref.root for ref in base.manifest.shards[:3]}


def test_a_release_is_listed_with_what_is_held_of_it(holdings: Holdings, base: SyntheticRelease) -> None:
    some = base.manifest.shards[:2]

    held = put(holdings, base, some)

    assert held.manifest == base.manifest
    assert held.held == set(some)
    assert (held.is_pinned, held.is_busy) == (False, False)
    assert (held.directory / "release.torrent").read_bytes() == base.torrent
    assert holdings.find("base") == holdings.find(held.release_id[:8]) == held
    with pytest.raises(NotFound, match="mesh ls"):
        holdings.find("other")


def test_removing_a_release_keeps_what_another_one_names(
    holdings: Holdings, base: SyntheticRelease, tuned: SyntheticRelease
) -> None:
    put(holdings, base)
    put(holdings, tuned)

    plan = holdings.remove(holdings.find("base"))

    assert plan.num_bytes == sum(SIZES[3:])
    assert holdings.store.held() == {ref.root for ref in tuned.manifest.shards}
    assert holdings.used_bytes() == total(tuned)
    assert [held.name for held in holdings.releases()] == ["tuned"]
    assert holdings.remove(holdings.find("tuned")).num_bytes == total(tuned)
    assert [
        path for path in holdings.store.directory.rglob("*") if path.is_file() and path.stat().st_size
    ] == []


def test_gc_evicts_the_least_recently_used_until_the_quota_holds(
    holdings: Holdings, clock: ManualClock, base: SyntheticRelease, tuned: SyntheticRelease
) -> None:
    put(holdings, tuned)
    clock.advance(60)
    put(holdings, base)
    assert holdings.reclaim().num_bytes == 0  # no quota: nothing that is named goes
    holdings.set_quota(total(base))

    said = holdings.reclaim(dry_run=True)
    assert len(holdings.releases()) == 2
    done = holdings.reclaim()

    assert said == done
    assert [held.name for held in holdings.releases()] == ["base"]
    assert holdings.store.held() == {ref.root for ref in base.manifest.shards}


def test_pinned_releases_stay_and_cannot_be_removed(holdings: Holdings, base: SyntheticRelease) -> None:
    holdings.pin(put(holdings, base))
    holdings.set_quota(1024)

    plan = holdings.reclaim()

    assert (plan.releases, plan.excess_bytes) == ((), total(base) - 1024)
    with pytest.raises(UsageError, match="mesh unpin base"):
        holdings.remove(holdings.find("base"))
    holdings.unpin(holdings.find("base"))
    assert holdings.reclaim().releases == (base.manifest.release_id,)


def test_nothing_of_a_release_goes_while_another_process_uses_it(
    holdings: Holdings, base: SyntheticRelease, tmp_path: Path
) -> None:
    put(holdings, base)
    holdings.set_quota(0)
    lock = holdings.find("base").directory / "lock"
    script = (
        "import sys, pathlib, time\nfrom mesh.locking import locked_file\n"
        "with locked_file(pathlib.Path(sys.argv[1]), shared=True):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        assert user.stdout.readline() == b"held\n"
        assert holdings.find("base").is_busy
        assert holdings.reclaim().releases == ()
        with pytest.raises(UsageError, match="in use"):
            holdings.remove(holdings.find("base"))
        user.kill()  # the kernel lets go for it

    assert holdings.reclaim().releases == (base.manifest.release_id,)
    assert holdings.store.held() == frozenset()


def test_a_fetch_over_the_quota_is_refused_and_told_what_gc_could_do(
    holdings: Holdings, base: SyntheticRelease, tuned: SyntheticRelease
) -> None:
    put(holdings, base)
    holdings.set_quota(total(base) + 10 * KIB)
    new = sum(ref.size for ref in tuned.manifest.shards[3:])

    with (
        pytest.raises(
            NotEnoughDisk, match=rf"{new} bytes .* to fetch, .*`mesh gc --free {new}` would make room"
        ),
        hold(holdings, tuned, tuned.manifest.shards),
    ):
        pytest.fail("must not begin")
    assert [held.name for held in holdings.releases()] == ["base"]

    holdings.pin(holdings.find("base"))
    with pytest.raises(NotEnoughDisk, match="raise the quota or unpin"):
        hold(holdings, tuned, tuned.manifest.shards).__enter__()
    holdings.unpin(holdings.find("base"))
    # Shared layers cost nothing, so what a fine-tune needs may fit where a whole release does not.
    holdings.set_quota(total(base) + new)
    put(holdings, tuned)
    assert holdings.used_bytes() == total(base) + new


def test_gc_removes_what_killed_processes_left(
    holdings: Holdings, base: SyntheticRelease, tmp_path: Path
) -> None:
    ref = base.manifest.shards[0]
    holdings.store.adopt(base.path(ref), ref)  # a registration that was removed before its blobs were
    left = tmp_path / "store" / "downloads" / ("0" * 64) / "base"
    left.mkdir(parents=True)
    (left / "layer").write_bytes(bytes(8192))

    plan = holdings.reclaim()

    assert plan.num_bytes == ref.size + 8192
    assert holdings.used_bytes() == 0
    assert list((tmp_path / "store" / "downloads").iterdir()) == []


def test_a_damaged_registration_stops_gc_and_can_be_removed(
    holdings: Holdings, base: SyntheticRelease, tuned: SyntheticRelease
) -> None:
    """Another release's manifest in its place would make gc delete the wrong blobs."""
    held = put(holdings, base)
    (held.directory / "manifest.dsse.json").write_bytes(sign_manifest(tuned.manifest, KEY))

    with pytest.raises(IntegrityError, match=f"mesh rm {held.release_id[:16]}"):
        holdings.reclaim()

    assert len(holdings.store.held()) == len(base.manifest.shards)
    assert holdings.find(held.release_id[:16]).name == "(damaged)"
    holdings.remove(holdings.find(held.release_id[:16]))
    assert holdings.reclaim().num_bytes == total(base)


def test_the_commands_say_what_the_store_holds(
    holdings: Holdings,
    base: SyntheticRelease,
    tuned: SyntheticRelease,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MESH_STORE", str(holdings.store.directory))
    put(holdings, base, base.manifest.shards[1:3])
    put(holdings, tuned)

    def run(*words: str, code: int = 0) -> str:
        assert main(list(words)) == code
        return capsys.readouterr().out

    listed = {held["name"]: held for held in json.loads(run("ls", "--json"))["releases"]}
    assert listed["base"]["layers"] == "0:2"
    assert (listed["base"]["bytes"], listed["base"]["shared_bytes"]) == (
        200 * KIB,
        200 * KIB,
    )  # embed came with tuned
    assert (listed["tuned"]["bytes"], listed["tuned"]["shared_bytes"]) == (total(tuned), 200 * KIB)

    run("pin", "tuned")
    table = run("ls")
    assert "3 of 5 shards, layers 0:2" in table
    assert "pinned" in table
    assert "2 releases" in table
    run("rm", "base", code=UsageError.exit_code)  # nobody is there to confirm
    run("rm", "tuned", "--yes", code=UsageError.exit_code)  # pinned
    assert json.loads(run("rm", "base", "--yes", "--json"))["bytes"] == 0
    run("gc", "--free", "1GB", code=UsageError.exit_code)  # there is no quota yet
    assert json.loads(run("gc", "--quota", "1KB", "--json"))["excess_bytes"] == total(tuned) - 1000
    run("unpin", "tuned")
    assert "would remove release tuned" in run("gc", "--dry-run")
    assert "removed release tuned" in run("gc")
    assert "0 releases, 0 B of a quota of 1000 B" in run("ls")
    run("rm", "tuned", "--yes", code=NotFound.exit_code)
