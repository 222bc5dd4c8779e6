"""``mesh-coordinator`` as its users meet it: its two outputs and its exit code. What serves is a process of its own."""

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import main
from mesh import __version__
from mesh.token import JoinToken
from mesh.weights.trust.signing import PrivateKey, TrustRoot
from tests.support.releases import PackedRelease, pack_tiny

COMMAND = [sys.executable, "-c", "import sys; from coordinator.cli import main; sys.exit(main())"]
STOP_SECONDS = 10.0  # on a busy machine; alone it is well below one


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedRelease:
    return pack_tiny(tmp_path_factory.mktemp("packed"), num_layers=2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own keys and settings are not part of a test."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("MESH_")]:
        monkeypatch.delenv(name)


Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a command in this process, which spares its imports; returns exit code, stdout and stderr."""
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ("mesh", "node", "coordinator"))]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]

    def call(*args: object) -> tuple[int, str, str]:
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    yield call
    root.handlers[:] = handlers  # `up` sets logging up for itself
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def refused(run: Run) -> Refused:
    """Runs a command that fails; returns its exit code and the one line that says why."""

    def call(*args: object) -> tuple[int, str]:
        code, out, line = run(*args)
        assert out == ""
        assert line.count("\n") == 1, line
        return code, line

    return call


def options(packed: PackedRelease, data: Path, **changed: object) -> list[str]:
    chosen = {
        "release": packed.directory,
        "trust": packed.trust_file,
        "listen": "127.0.0.1:0",
        "grpc": "127.0.0.1:0",
        "data": data,
        **changed,
    }
    return [part for name, value in chosen.items() for part in (f"--{name}", str(value))]


@contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "up", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def listening(packed: PackedRelease, data: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with running(*options(packed, data), "--json") as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def test_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"mesh-coordinator {__version__}\n", "")


def test_up_says_in_one_line_of_json_where_it_listens_and_how_to_join(
    packed: PackedRelease, data: Path
) -> None:
    with listening(packed, data) as (process, event):
        assert event["event"] == "listening"
        assert (event["release"], event["model"]) == (packed.manifest.release_id, "tiny")
        token = JoinToken.parse(event["token"])
        assert token.trust_digest == hashlib.sha256(packed.trust_file.read_bytes()).digest()
        with urllib.request.urlopen(f"http://{event['http']}/v1/models") as response:
            assert [model["id"] for model in json.load(response)["data"]] == ["tiny"]
        with pytest.raises(urllib.error.HTTPError) as health:
            urllib.request.urlopen(f"http://{event['http']}/health")
        assert health.value.code == 503
        assert json.load(health.value)["models"][0]["missing"] == ["0:2"]
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=STOP_SECONDS)
        assert rest == ""
        assert process.returncode == 128 + signal.SIGTERM


def test_up_prints_the_line_that_a_volunteer_pastes(packed: PackedRelease, data: Path) -> None:
    with running(*options(packed, data)) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(3)]
        (join,) = [line for line in lines if "mesh-node join" in line]
        _, _, command = join.partition("mesh-node ")
        _, endpoint, flag, token = command.split()
        assert flag == "--token"
        JoinToken.parse(token)
        socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2]))).close()
        assert any("http://127.0.0.1:" in line for line in lines)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=STOP_SECONDS)
        assert process.returncode == 128 + signal.SIGINT


def test_tokens_are_made_listed_and_revoked_while_the_coordinator_runs(
    packed: PackedRelease, data: Path, run: Run
) -> None:
    with listening(packed, data) as (_, event):
        line = run("token", "create", "--data", data, "--ttl", "1h", "--label", "friend")[1].split()
        assert line[:4] == ["mesh-node", "join", event["grpc"], "--token"]
        token = JoinToken.parse(line[4])
        assert token.trust_digest == JoinToken.parse(event["token"]).trust_digest

        listed = run("token", "list", "--data", data)[1]
        assert event["token"] not in listed
        assert line[4] not in listed
        tokens = json.loads(run("token", "list", "--data", data, "--json")[1])["tokens"]
        assert [(found["label"], found["status"]) for found in tokens] == [
            ("up", "valid"),
            ("friend", "valid"),
        ]

        assert run("token", "revoke", tokens[1]["id"], "--data", data)[0] == 0
        tokens = json.loads(run("token", "list", "--data", data, "--json")[1])["tokens"]
        assert [found["status"] for found in tokens] == ["valid", "revoked"]


def test_the_token_of_the_last_run_is_still_known_after_a_restart(
    packed: PackedRelease, data: Path, run: Run
) -> None:
    # Nodes that kept their layers come back with it.
    for _ in range(2):
        with listening(packed, data) as (process, _):
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=STOP_SECONDS)
    tokens = json.loads(run("token", "list", "--data", data, "--json")[1])["tokens"]
    assert [found["status"] for found in tokens] == ["valid", "valid"]


def test_a_second_coordinator_on_the_same_data_is_refused(
    packed: PackedRelease, data: Path, refused: Refused
) -> None:
    with listening(packed, data):
        code, line = refused("up", *options(packed, data))
    assert code != 0
    assert f"{data} is in use by another mesh-coordinator" in line


@pytest.mark.parametrize("flag", ["listen", "grpc"])
def test_a_port_in_use_is_one_line_that_names_it_and_the_flag_to_change(
    packed: PackedRelease, data: Path, flag: str, refused: Refused
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, line = refused("up", *options(packed, data, **{flag: address}))
    assert code == 1
    assert f"cannot listen on {address}: the port is in use" in line
    assert f"--{flag}" in line


@pytest.mark.parametrize("flag", ["listen", "grpc"])
def test_addresses_that_strangers_can_reach_need_insecure(
    packed: PackedRelease, data: Path, flag: str, refused: Refused
) -> None:
    code, line = refused("up", *options(packed, data, **{flag: "0.0.0.0:0"}))
    assert code == 2
    assert ("key create" if flag == "listen" else "--insecure") in line
    assert not data.exists()


def test_a_session_that_could_hold_no_answer_is_a_usage_error(
    packed: PackedRelease, data: Path, refused: Refused
) -> None:
    code, line = refused("up", *options(packed, data, **{"max-session-tokens": 1}))
    assert code == 2
    assert "--max-session-tokens 1: expected 2 or more" in line
    assert not data.exists()


def test_a_release_of_an_unknown_publisher_is_refused_before_anything_listens(
    packed: PackedRelease, data: Path, tmp_path: Path, refused: Refused
) -> None:
    other = tmp_path / "other.pub"
    other.write_bytes(TrustRoot.of(PrivateKey.generate().public).to_bytes())
    code, line = refused("up", *options(packed, data, trust=other))
    assert code == 4
    assert packed.key.public.key_id in line
    assert not data.exists()


def test_a_changed_tokenizer_is_refused_by_name(data: Path, tmp_path: Path, refused: Refused) -> None:
    packed = pack_tiny(tmp_path / "changed", num_layers=1)
    path = packed.open().shard_path(packed.manifest.shard("aux"))
    path.chmod(0o600)
    flipped = bytearray(path.read_bytes())
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    code, line = refused("up", *options(packed, data))
    assert code == 4
    assert "aux.safetensors" in line


def test_another_torrent_than_the_manifests_is_refused(data: Path, tmp_path: Path, refused: Refused) -> None:
    packed, other = (
        pack_tiny(tmp_path / name, num_layers=1, seed=seed) for seed, name in enumerate(("one", "two"))
    )
    torrent = packed.directory / "release.torrent"
    torrent.chmod(0o600)
    torrent.write_bytes((other.directory / "release.torrent").read_bytes())
    code, _ = refused("up", *options(packed, data))
    assert code == 4


def test_a_release_that_is_not_there_is_not_found(
    packed: PackedRelease, data: Path, tmp_path: Path, refused: Refused
) -> None:
    code, line = refused("up", *options(packed, data, release=tmp_path / "nowhere"))
    assert (code, "mesh pack" in line) == (3, True)


@pytest.mark.parametrize(
    "command", [["token", "create"], ["token", "list"], ["token", "revoke", "ab"], ["nodes"]]
)
def test_questions_about_a_coordinator_that_never_ran_make_nothing(
    data: Path, command: list[str], refused: Refused
) -> None:
    code, line = refused(*command, "--data", data)
    assert code == 3
    assert "mesh-coordinator up" in line
    assert not data.exists()


@pytest.mark.parametrize("ttl", ["0h", "1", "-1h", "1y", ""])
def test_a_time_that_is_none_is_a_usage_error(
    packed: PackedRelease, data: Path, ttl: str, refused: Refused
) -> None:
    data.mkdir()
    written = {
        "http": "127.0.0.1:1",
        "grpc": "127.0.0.1:2",
        "trust_digest": "00" * 32,
        "release": "",
        "model": "",
    }
    (data / "listening.json").write_text(json.dumps(written))
    code, line = refused("token", "create", "--data", data, "--ttl", ttl)
    assert code == 2
    assert "--ttl" in line


def test_a_key_is_shown_once_listed_without_its_secret_and_revoked_by_its_id(data: Path, run: Run) -> None:
    code, made, _ = run("key", "create", "--label", "alice", "--rpm", 60, "--streams", 2, "--data", data)
    assert code == 0
    assert made.startswith("sk-mesh-")
    code, listed, _ = run("key", "list", "--data", data)
    assert made.strip() not in listed
    assert "60 requests per minute, 2 streams" in listed
    assert "alice" in listed
    key_id = listed.split()[0]
    assert run("key", "revoke", key_id[:6], "--data", data)[0] == 0
    code, out, _ = run("key", "list", "--json", "--data", data)
    assert [key["status"] for key in json.loads(out)["keys"]] == ["revoked"]


def test_a_key_lets_the_api_listen_beyond_loopback(data: Path) -> None:
    from coordinator.key_cli import has_keys

    assert not has_keys(data)
    run_key = [*COMMAND, "key", "create", "--data", str(data)]
    subprocess.run(run_key, check=True, capture_output=True)
    assert has_keys(data)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("key", "create", "--scope", "everything"), 2, "generate or inspect"),
        (("key", "create", "--ttl", "soon"), 2, "--ttl"),
        (("key", "list"), 3, "no coordinator has run"),
        (("key", "revoke", "abc"), 3, "no coordinator has run"),
    ],
)
def test_a_wrong_key_command_says_what_it_expected_and_makes_nothing(
    args: tuple[str, ...], code: int, says: str, data: Path, refused: Refused
) -> None:
    found, line = refused(*args, "--data", data)
    assert found == code
    assert says in line
    assert not data.exists()
