"""Whether an answer is possible now: the mesh as the pipeline and the HTTP side ask for it."""

from __future__ import annotations

from coordinator.membership import Membership
from coordinator.routing import Route, RouteStage
from coordinator.serving import MeshHealth, ModelHealth
from mesh.clock import Clock
from mesh.errors import RequestRefused

RETRY_SECONDS = 5  # while layers are missing: a node takes some seconds to join


class Availability:
    def __init__(self, model: str, membership: Membership, clock: Clock) -> None:
        self._model, self._membership, self._clock = model, membership, clock
        self._is_stopping = False

    def find_route(self) -> Route:
        """Raises RequestRefused (503) while no route exists."""
        if self._is_stopping:
            raise RequestRefused(
                "the coordinator is stopping", status=503, code="draining", retry_after=RETRY_SECONDS
            )
        view = self._membership.view(self._clock.monotonic())
        route = view.route()
        if route is None:
            missing = ", ".join(map(str, view.missing))
            raise RequestRefused(
                f"{self._model} cannot answer yet: nobody serves layers {missing}; try again when nodes have joined",
                status=503,
                code="mesh_incomplete",
                retry_after=RETRY_SECONDS,
            )
        return route

    def on_link_lost(self, stage: RouteStage) -> None:
        """The next request goes another way, before the lease of a dead node has ended."""
        self._membership.suspect(stage.node_id, stage.incarnation)

    def health(self) -> MeshHealth:
        view = self._membership.view(self._clock.monotonic())
        return MeshHealth((ModelHealth(self._model, view.coverage),), len(view.nodes), RETRY_SECONDS)

    def stop(self) -> None:
        """From now on no request finds a route."""
        self._is_stopping = True
