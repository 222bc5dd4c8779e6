"""A volunteer's choices that cannot work are refused before anything is asked or fetched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mesh.errors import UsageError
from mesh.token import JoinToken
from node.config import NodeConfig

GOOD = NodeConfig(
    coordinator="127.0.0.1:7443",
    token=JoinToken(b"s" * 16, b"d" * 32),
    name="kea",
    data=Path("data"),
    trust_file=None,
    memory_bytes=None,
    device="cpu",
    engine="torch",
    threads=None,
    layers=None,
    model=None,
    listen=("127.0.0.1", 0),
    swarm_listen=("127.0.0.1", 0),
    kv_tokens=1024,
    max_sessions=4,
    max_upload_bytes_per_second=None,
    store_quota_bytes=None,
    accept_license=None,
    assume_yes=True,
    insecure=False,
    wait_seconds=1.0,
    json_events=False,
)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": ""}, "--name"),
        ({"name": "a\nb"}, "--name"),
        ({"kv_tokens": 1}, "--kv-tokens"),
        ({"threads": 0}, "--threads"),
        ({"coordinator": "192.0.2.7:7443"}, "--insecure"),
        # Neighbours could never reach a stage that only this machine can.
        ({"coordinator": "192.0.2.7:7443", "insecure": True}, "--listen"),
        ({"coordinator": "192.0.2.7:7443", "insecure": True, "listen": ("0.0.0.0", 0)}, "--swarm-listen"),
    ],
)
def test_choice_that_cannot_work_is_refused_by_its_flag(change: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        replace(GOOD, **change)


def test_node_beside_a_remote_coordinator_listens_where_others_can_reach() -> None:
    everywhere = ("0.0.0.0", 0)
    config = replace(
        GOOD, coordinator="192.0.2.7:7443", insecure=True, listen=everywhere, swarm_listen=everywhere
    )
    assert config.listen == everywhere
