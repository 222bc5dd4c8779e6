"""Whether a token makes it through every stage of a model right now, found out by sending one.

Coverage says that nodes hold leases; a probe says that they answer. It is asked by load balancers, often and by many, so
an outcome counts for a second and whoever asks meanwhile shares it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from coordinator.serving import ServedModel
from coordinator.token_pipeline import TokenRequest
from mesh.clock import Clock, SystemClock
from mesh.errors import MeshError, Temporary
from mesh.model.sampling import SamplingParams

logger = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
PROBE_TIMEOUT_SECONDS = 5.0  # what a load balancer waits, about; a healthy mesh needs milliseconds


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    seconds: float
    error: MeshError | None  # None: the token came back


class Probe:
    """Of one model; ``outcome`` may be asked by any number of tasks."""

    def __init__(self, model: ServedModel, clock: Clock | None = None) -> None:
        self._model, self._clock = model, clock or SystemClock()
        self._asking = asyncio.Lock()
        self._outcome: ProbeOutcome | None = None
        self._at = 0.0  # monotonic seconds

    async def outcome(self) -> ProbeOutcome:
        async with self._asking:
            now = self._clock.monotonic()
            if self._outcome is None or now - self._at >= FRESH_SECONDS:
                error = await self._try()
                self._at = self._clock.monotonic()
                self._outcome = ProbeOutcome(self._at - now, error)
            return self._outcome

    async def _try(self) -> MeshError | None:
        token_id = self._model.manifest.config.bos_token_id or 0
        request = TokenRequest("probe", (token_id,), 1, SamplingParams())
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                async with self._model.pipeline.session(request) as session:
                    async for _ in session.tokens():
                        pass
        except TimeoutError:
            return Temporary(f"no token came back within {PROBE_TIMEOUT_SECONDS:g} s")
        except MeshError as exc:
            return exc
        return None
