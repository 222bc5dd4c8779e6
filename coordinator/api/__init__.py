"""The OpenAI-compatible HTTP side of the coordinator: a thin edge around ``coordinator.generation``.

``create_app`` is its only door. Binding an address and telling clients apart are the daemon's.
"""

from coordinator.api.app import create_app

__all__ = ["create_app"]
