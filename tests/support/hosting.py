"""A release that is hosted without its files: what the coordinator's services need of one."""

from __future__ import annotations

from coordinator.availability import Availability
from coordinator.hosting import Hosted
from coordinator.membership import Membership
from coordinator.service import OfferedRelease
from tests.support.fake_pipeline import FakePipeline
from tests.support.served_model import served_model


def hosted(
    offered: OfferedRelease,
    membership: Membership,
    availability: Availability,
    *,
    name: str = "tiny",
    at_once: bool = False,
) -> Hosted:
    async def close() -> None:
        availability.stop()

    model = served_model(FakePipeline(b"a"), name=name)
    return Hosted(offered, membership, availability, model, close, replaces_at_once=at_once)
