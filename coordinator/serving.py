"""What the coordinator serves, as the HTTP side sees it: models that answer, and how much of the mesh is there.

Values only. The daemon makes them; ``generation.py`` and ``api/`` read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mesh
from coordinator.access.admission import Admission
from coordinator.token_pipeline import TokenPipeline
from mesh.layers import LayerRange
from mesh.model.chat_template import ChatTemplate
from mesh.model.tokenizer import Tokenizer
from mesh.weights.trust.manifest import Manifest


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ServedModel:
    """A release that clients may ask for, with all that turns messages into token ids and back."""

    name: str  # what clients put into "model"
    manifest: Manifest
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    pipeline: TokenPipeline
    admission: Admission  # the door in front of the pipeline
    created: int  # seconds since the Unix epoch
    max_session_tokens: int | None = None  # of KV cache, if the operator grants less than the model's context

    @property
    def context_length(self) -> int:
        """Tokens, prompt and answer together. What one session may not hold does not exist for clients."""
        trained = self.manifest.config.context_length
        return trained if self.max_session_tokens is None else min(trained, self.max_session_tokens)

    @property
    def fingerprint(self) -> str:
        """What an equal answer to an equal seed depends on: the release and this software's version."""
        return f"{self.manifest.release_id[:16]}-{mesh.__version__}"


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """How many ready stages serve each layer of a model."""

    name: str
    coverage: Sequence[int]  # [num_layers]

    @property
    def missing(self) -> tuple[LayerRange, ...]:
        """Layers that nobody serves, as the fewest ranges, in order."""
        absent = [layer for layer, stages in enumerate(self.coverage) if stages == 0]
        starts = [layer for layer in absent if layer - 1 not in absent]
        stops = [layer + 1 for layer in absent if layer + 1 not in absent]
        return tuple(LayerRange(start, stop) for start, stop in zip(starts, stops, strict=True))

    @property
    def is_ready(self) -> bool:
        return min(self.coverage, default=0) > 0


@dataclass(frozen=True, slots=True)
class MeshHealth:
    models: Sequence[ModelHealth]
    nodes: int  # with a valid lease, whatever they are doing
    retry_after: int = 5  # seconds until asking again is sensible while layers are missing

    @property
    def is_ready(self) -> bool:
        """At least one model can answer."""
        return any(model.is_ready for model in self.models)

    def model(self, name: str) -> ModelHealth:
        """Of a model that nothing is known of: that no layer is there."""
        return next((model for model in self.models if model.name == name), ModelHealth(name, ()))
