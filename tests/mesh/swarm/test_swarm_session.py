from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mesh.errors import MeshError, UsageError
from mesh.swarm.session import SwarmSession, SwarmSettings


def num_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_free_port_is_chosen_and_told() -> None:
    async with SwarmSession() as one, SwarmSession() as other:
        assert one.endpoint[0] == "127.0.0.1"
        assert one.endpoint[1] > 0
        assert one.endpoint != other.endpoint
        with socket.create_connection(one.endpoint, timeout=5):
            pass


async def test_port_in_use_is_named_and_nothing_stays_open() -> None:
    async with SwarmSession() as first:
        before = num_descriptors()
        with pytest.raises(MeshError, match=rf"127\.0\.0\.1:{first.endpoint[1]}: Address already in use"):
            async with SwarmSession(SwarmSettings(port=first.endpoint[1])):
                pytest.fail("two sessions share a port")
        assert num_descriptors() == before


async def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(UsageError, match=r"198\.51\.100\.7"):
        async with SwarmSession(SwarmSettings("198.51.100.7", 7001)):
            pytest.fail("listens on an address that is not ours")


@pytest.mark.parametrize(
    "broken",
    [
        {"listen_host": "localhost"},
        {"listen_host": "127.0.0.1:1,0.0.0.0"},
        {"port": 65536},
        {"port": -1},
        {"max_upload_bytes_per_second": 0},
    ],
)
def test_impossible_settings_are_refused(broken: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SwarmSettings(**broken)  # type: ignore[arg-type]


async def test_every_interface_listens_on_the_same_port() -> None:
    async with SwarmSession(SwarmSettings("0.0.0.0")) as session:
        with socket.create_connection(("127.0.0.1", session.endpoint[1]), timeout=5):
            pass


async def test_closed_session_gives_back_its_port_and_descriptors() -> None:
    async with SwarmSession():  # what libtorrent opens once per process is open now
        pass
    before = num_descriptors()
    async with SwarmSession() as session:
        endpoint = session.endpoint

    assert num_descriptors() == before
    async with SwarmSession(SwarmSettings(port=endpoint[1])) as again:
        assert again.endpoint == endpoint
