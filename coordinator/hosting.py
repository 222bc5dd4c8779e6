"""The releases that this coordinator serves, and which of them a client or a newcomer gets.

Clients ask by name. Several releases of one name are its versions: the newest that can answer is the one that does, so a
new version is published by adding it, answers that are running end on the version they began on, and the old version's
nodes move over (``succession``). Newcomers are offered the version that is current, of the model that needs them most.

Holds values and asks time of its clock. Knows nothing of files, sockets or messages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from coordinator.availability import RETRY_SECONDS, Availability
from coordinator.membership import Membership
from coordinator.placement import Candidate, Capacity, choose_release
from coordinator.service import OfferedRelease
from coordinator.serving import MeshHealth, ModelHealth, ServedModel
from coordinator.succession import may_move
from mesh.clock import Clock
from mesh.errors import NotFound, UsageError
from mesh.layers import LayerRange


@dataclass(frozen=True, slots=True, eq=False)
class Hosted:
    """One release and everything that serves it."""

    offered: OfferedRelease
    membership: Membership
    availability: Availability
    model: ServedModel
    close: Callable[[], Awaitable[None]]  # ends its answers and its links
    replaces_at_once: bool = False  # older versions of its name take no new request, ready or not

    @property
    def release_id(self) -> str:
        return self.offered.release_id


class Hosting(Mapping[str, ServedModel]):
    """``hosting[name]`` is the version of that model that answers now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hosted: dict[str, Hosted] = {}  # by release id, in the order they were added

    def add(self, hosted: Hosted) -> None:
        self._hosted[hosted.release_id] = hosted

    def remove(self, release_id: str) -> Hosted:
        return self._hosted.pop(release_id)

    @property
    def all(self) -> tuple[Hosted, ...]:
        return tuple(self._hosted.values())

    # -- for BitTorrent clients

    @property
    def tracked(self) -> list[tuple[bytes, Membership]]:
        return [(hosted.offered.envelope, hosted.membership) for hosted in self._hosted.values()]

    # -- for clients

    def __getitem__(self, name: str) -> ServedModel:
        return self._answering(name).model

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(hosted.model.name for hosted in self._hosted.values()))

    def __len__(self) -> int:
        return len(set(self))

    def health(self) -> MeshHealth:
        now = self._clock.monotonic()
        return MeshHealth(
            tuple(ModelHealth(name, self._answering(name).membership.view(now).coverage) for name in self),
            sum(len(hosted.membership.view(now).nodes) for hosted in self._hosted.values()),
            RETRY_SECONDS,
        )

    # -- for nodes

    def of(self, release_id: str) -> Hosted:
        if (found := self._hosted.get(release_id)) is None:
            served = ", ".join(each[:16] for each in self._hosted) or "none now"
            raise NotFound(
                f"release {release_id[:16]!r} is not served here; this coordinator serves {served}"
            )
        return found

    def find(self, text: str) -> Hosted:
        """The release of that id, or the newest of that name; the only model's for an empty text."""
        names = list(self)
        if not text and not names:
            raise NotFound("this coordinator serves no release now; the last one was revoked or removed")
        if not text and len(names) > 1:
            raise UsageError(f"this coordinator serves several models, say which: {', '.join(names)}")
        if not text or text in names:
            return self._newest(text or names[0])
        return self.of(text)

    def of_node(self, node_id: str, incarnation: int) -> Hosted:
        """Where the node holds layers or was offered some last. Raises NotFound: join again."""
        for hosted in self._hosted.values():
            if hosted.membership.knows(node_id, incarnation):
                return hosted
        raise NotFound(f"node {node_id[:80]!r} holds no lease here; join again")

    def choose(
        self, node_id: str, capacity: Capacity, model: str, release_id: str
    ) -> tuple[Hosted, LayerRange]:
        """What a newcomer is offered: of the release or the model it insists on, else of the one that needs it most.

        Raises NotFound for a model or release that is not here, NotEnoughMemory where nothing of any fits.
        """
        now = self._clock.monotonic()
        hosted = [self.of(release_id)] if release_id else self._current(model)
        if not hosted:
            raise NotFound("no release is served here now; ask the operator")
        candidates = [
            Candidate(each.offered.config, each.membership.reserved(now, excluding=node_id))
            for each in hosted
        ]
        index, layers = choose_release(candidates, capacity)
        for other in self._hosted.values():  # an offer elsewhere that was not taken is off
            if other is not hosted[index]:
                other.membership.withdraw(node_id)
        return hosted[index], layers

    def should_move(self, hosted: Hosted, node_id: str) -> bool:
        """Whether the node shall leave this version and join again, for the newer one."""
        successor = self._newest(hosted.model.name)
        if successor is hosted:
            return False
        now = self._clock.monotonic()
        return may_move(
            hosted.membership.view(now),
            node_id,
            successor.membership.view(now),
            answers=hosted.availability.answers_on(node_id),
            at_once=successor.replaces_at_once,
        )

    def abandoned(self) -> tuple[Hosted, ...]:
        """Older versions with no node and no answer left, while the newer one can answer."""
        now = self._clock.monotonic()
        return tuple(
            hosted
            for hosted in self._hosted.values()
            if (newest := self._newest(hosted.model.name)) is not hosted
            and newest.availability.is_ready
            and not hosted.membership.view(now).nodes
            and not hosted.availability.num_answers
        )

    def _newest(self, name: str) -> Hosted:
        return [hosted for hosted in self._hosted.values() if hosted.model.name == name][-1]

    def _answering(self, name: str) -> Hosted:
        """Raises KeyError for a name that is not served, as a mapping does."""
        versions = [hosted for hosted in self._hosted.values() if hosted.model.name == name]
        if not versions:
            raise KeyError(name)
        for hosted in reversed(versions):
            if hosted.availability.is_ready or hosted.replaces_at_once:
                return hosted
        return versions[-1]

    def _current(self, model: str) -> list[Hosted]:
        if model and model not in self:
            raise NotFound(f"model {model[:100]!r} is not served here; there is {', '.join(self)}")
        return [self._newest(name) for name in self if not model or name == model]
