"""``mesh keys | pack | show | verify`` as an operator meets them: exit codes, one line per error, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from mesh import errors
from mesh.cli.main import COMMANDS, main
from mesh.cli.run_cli import run_app
from mesh.publishing import pack_release
from mesh.weights.trust.manifest import Manifest
from mesh.weights.trust.signing import PrivateKey, TrustRoot, _pae, sign_manifest
from tests.support.tiny_models import write_tiny_checkpoint

KEY = PrivateKey.from_seed(bytes(32))


@pytest.fixture(autouse=True)
def _own_key_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("MESH_TRUST", "MESH_KEY", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny-llama", num_layers=3)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "publisher.pub"
    path.write_bytes(TrustRoot.of(KEY.public).to_bytes())
    return path


@pytest.fixture
def release(tiny: Path, tmp_path: Path) -> Path:
    pack_release(tiny, tmp_path / "release", "apache-2.0", None, KEY)
    return tmp_path / "release"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mesh(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*args: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def one_line(err: str) -> str:
    assert err.startswith("mesh: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def shard_files(release: Path) -> list[Path]:
    return sorted((release / "tiny-llama").iterdir())


def test_the_story_from_key_to_verified_release(tiny: Path, tmp_path: Path, mesh: Run) -> None:
    out = tmp_path / "out"
    assert mesh("keys", "new", "alice")[0] == 0
    assert "sign   alice" in mesh("keys", "list")[1]
    code, said, err = mesh("pack", tiny, "--out", out, "--license", "apache-2.0", "--key", "alice")
    assert (code, err) == (0, "")
    assert "packed tiny-llama: 6 shards" in said
    code, said, err = mesh("verify", out)
    assert (code, err) == (0, "")
    assert "verified tiny-llama: 6 shards" in said
    code, said, _ = mesh("show", out)
    assert code == 0
    assert "layer-00002.safetensors" in said
    assert "Apache-2.0" in said


def test_json_goes_to_stdout_alone(tiny: Path, tmp_path: Path, mesh: Run) -> None:
    out = tmp_path / "out"
    made = json.loads(mesh("keys", "new", "--json")[1])
    packed = json.loads(
        mesh("pack", tiny, "--out", out, "--license", "Apache-2.0", "--key", "publisher", "--json")[1]
    )
    shown = json.loads(mesh("show", out, "--json")[1])
    verified = json.loads(mesh("verify", out, "--json")[1])
    listed = json.loads(mesh("keys", "list", "--json")[1])
    assert packed["release_id"] == shown["release_id"] == verified["release_id"]
    assert packed["signer"] == shown["signer"] == verified["signer"] == made["key_id"]
    assert listed["keys"] == [{"name": "publisher", "key_id": made["key_id"], "can_sign": True}]
    assert verified["ok"]
    assert Manifest.parse(json.dumps(shown["manifest"], sort_keys=True, separators=(",", ":")).encode())


def test_every_shard_with_a_flipped_byte_is_named(release: Path, trust: Path, mesh: Run) -> None:
    for path in shard_files(release):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        code, said, err = mesh("verify", release, "--trust", trust)
        assert code == 4
        assert path.name in one_line(err)
        assert f"BAD  shard {path.name}: expected root" in said
    code, said, err = mesh("verify", release, "--trust", trust, "--json")
    report = json.loads(said)
    assert (code, report["ok"], len(report["shards"])) == (4, False, 6)
    assert not any(shard["ok"] for shard in report["shards"])
    assert all(path.name in err for path in shard_files(release))


def test_a_truncated_shard_is_named(release: Path, trust: Path, mesh: Run) -> None:
    path = shard_files(release)[3]
    os.truncate(path, path.stat().st_size - 1)
    code, _, err = mesh("verify", release, "--trust", trust)
    assert code == 4
    assert path.name in one_line(err)


def test_a_missing_shard_is_not_found_and_a_corrupt_one_outweighs_it(
    release: Path, trust: Path, mesh: Run
) -> None:
    gone, bad = shard_files(release)[:2]
    gone.unlink()
    code, _, err = mesh("verify", release, "--trust", trust)
    assert code == 3
    assert gone.name in one_line(err)
    bad.write_bytes(b"")
    code, _, err = mesh("verify", release, "--trust", trust)
    assert code == 4
    assert gone.name in err
    assert bad.name in err


def test_files_that_are_not_part_of_the_release_are_said(release: Path, trust: Path, mesh: Run) -> None:
    (release / "tiny-llama" / "extra.safetensors").write_bytes(b"x")
    code, said, err = mesh("verify", release, "--trust", trust)
    assert code == 0
    assert "verified" in said
    assert "not part of the release: tiny-llama/extra.safetensors\n" in said
    assert err == ""


def rewrite_manifest(release: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Sign a manifest that our own code would never make."""
    import base64

    path = release / "manifest.dsse.json"
    envelope = json.loads(path.read_bytes())
    value = json.loads(base64.b64decode(envelope["payload"]))
    change(value)
    payload = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    envelope["payload"] = base64.b64encode(payload).decode()
    signature = KEY.sign(_pae(envelope["payloadType"], payload))
    envelope["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    path.write_bytes(json.dumps(envelope).encode())


def test_a_duplicate_layer_in_a_signed_manifest_is_refused(release: Path, trust: Path, mesh: Run) -> None:
    rewrite_manifest(release, lambda value: value["shards"][2].update(layer=0))
    for command in ("show", "verify"):
        code, said, err = mesh(command, release, "--trust", trust)
        assert (code, said) == (4, "")
        assert "layer 0 twice" in one_line(err)


def test_a_wrong_signature_is_refused(release: Path, trust: Path, mesh: Run) -> None:
    path = release / "manifest.dsse.json"
    envelope = json.loads(path.read_bytes())
    envelope["signatures"][0]["sig"] = "A" * 86 + "=="
    path.write_bytes(json.dumps(envelope).encode())
    code, said, err = mesh("verify", release, "--trust", trust)
    assert (code, said) == (4, "")
    assert "signature" in one_line(err)


def test_an_unknown_key_is_refused_with_its_fingerprint_and_what_to_do(release: Path, mesh: Run) -> None:
    mesh("keys", "new", "somebody-else")
    for command in ("show", "verify"):
        code, said, err = mesh(command, release)
        assert (code, said) == (4, "")
        assert KEY.public.key_id in one_line(err)
        assert "--trust" in err


def test_no_key_at_all_says_what_to_pass(release: Path, mesh: Run) -> None:
    code, _, err = mesh("verify", release)
    assert code == 3
    assert "--trust" in one_line(err)


def test_a_torrent_of_something_else_is_refused(
    tiny: Path, release: Path, trust: Path, tmp_path: Path, mesh: Run
) -> None:
    pack_release(tiny, tmp_path / "other", "apache-2.0", None, KEY, name="other")
    (tmp_path / "other" / "release.torrent").replace(release / "release.torrent")
    code, _, err = mesh("verify", release, "--trust", trust)
    assert code == 4
    assert "torrent" in one_line(err)


def test_a_manifest_of_another_release_is_refused(release: Path, trust: Path, mesh: Run) -> None:
    from tests.mesh.weights.example_manifest import example_manifest

    (release / "manifest.dsse.json").write_bytes(sign_manifest(example_manifest(), KEY))
    code, _, err = mesh("verify", release, "--trust", trust)
    assert code == 4
    one_line(err)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("verify", "nowhere"), 3, "no such directory"),
        (("show", "nowhere"), 3, "nowhere"),
        (("pack", "nowhere", "--out", "x", "--license", "MIT"), 3, "nowhere"),
        (("pack", "nowhere", "--license", "MIT"), 2, "--out"),
        (("frobnicate",), 2, "frobnicate"),
        (("verify", "--frobnicate", "x"), 2, "mesh verify --help"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    trust: Path, mesh: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], code: int, says: str
) -> None:
    mesh("keys", "new")
    monkeypatch.setenv("MESH_KEY", "publisher")
    found, said, err = mesh(*args)
    assert (found, said) == (code, "")
    assert says in one_line(err)


def test_a_traceback_is_shown_only_when_asked_for(mesh: Run) -> None:
    assert "Traceback" not in mesh("verify", "nowhere", "--trust", "nowhere")[2]
    assert "Traceback" in mesh("verify", "nowhere", "--trust", "nowhere", "-v")[2]
    assert "Traceback" in mesh("-v", "verify", "nowhere", "--trust", "nowhere")[2]


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    script = (
        "import sys; from mesh.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'libtorrent', 'grpc', 'gguf', 'numpy', 'fastapi', 'sqlalchemy', 'cryptography', 'httpx'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stderr.strip() == "[]"
    assert all(f"  {name} " in ran.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.MeshError("x"), 1),
        (errors.NotAuthorised("x"), 8),
        (errors.Temporary("x"), 75),
        (KeyboardInterrupt(), 130),
        (SystemExit(9), 9),
        (FileNotFoundError(2, "No such file", "f"), 3),
        (PermissionError(13, "Permission denied", "f"), 1),
        (OSError(28, "No space left on device", "f"), 7),
        (OSError(27, "File too large"), 7),
        (ZeroDivisionError("a mistake of ours"), 1),
    ],
)
def test_every_end_has_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    handler = signal.getsignal(signal.SIGTERM)
    assert run_app(app, [], prog="x") == code
    assert capsys.readouterr().err.count("\n") <= 1
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_command_may_return_its_exit_code() -> None:
    app = typer.Typer()
    app.command()(lambda: 9)
    assert run_app(app, [], prog="x") == 9


def pack_in_a_process(tiny: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    assert main(["keys", "new", "--out", str(out.parent)]) == 0
    command = [
        sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())", "pack", str(tiny),
        "--out", str(out), "--license", "apache-2.0", "--key", str(out.parent / "publisher.key"),
    ]  # fmt: skip
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def test_a_full_disk_is_one_line_with_exit_code_7_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    with pack_in_a_process(tiny, tmp_path / "work" / "out", preexec_fn=limit) as process:
        _, err = process.communicate()
    assert process.returncode == 7
    assert ".safetensors: File too large" in one_line(err)
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"publisher.key", "publisher.pub"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_release_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "work").mkdir()
    script = (
        "import sys, mesh.publishing as p\n"
        "from mesh.cli.main import main\n"
        "def wait(*given):\n"  # all shards are written, nothing is renamed yet
        "    print('written', flush=True); sys.stdin.read()\n"
        "p.Draft.source_digest = wait\n"
        "sys.exit(main())\n"
    )
    assert main(["keys", "new", "--out", str(tmp_path / "work")]) == 0
    command = [
        sys.executable, "-c", script, "pack", str(tiny), "--out", str(tmp_path / "work" / "out"),
        "--license", "apache-2.0", "--key", str(tmp_path / "work" / "publisher.key"),
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(number)
        assert process.wait() == code
        assert process.stderr is not None
        assert "the same command goes on from there" in process.stderr.read()
    kept = {"publisher.key", "publisher.pub", ".out.packing"}
    assert {path.name for path in (tmp_path / "work").iterdir()} == kept
    assert main(command[3:]) == 0
    assert {path.name for path in (tmp_path / "work").iterdir()} == kept - {".out.packing"} | {"out"}


def test_a_reader_that_leaves_early_is_no_error(release: Path, trust: Path) -> None:
    command = [sys.executable, "-c", "import sys; from mesh.cli.main import main; sys.exit(main())"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(
        [*command, "show", release, "--trust", trust], stdout=write_end, stderr=subprocess.PIPE, check=False
    )
    os.close(write_end)
    assert ran.stderr == b""
    assert ran.returncode == 1
