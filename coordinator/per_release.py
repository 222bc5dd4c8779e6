"""Something that is made once for each release that is served, when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from coordinator.serving import ServedModel

T = TypeVar("T")


class PerRelease(Generic[T]):
    """Gone with the release: nobody has to say that it is served no longer."""

    def __init__(self, make: Callable[[ServedModel], T]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[ServedModel, T] = WeakKeyDictionary()

    def __call__(self, model: ServedModel) -> T:
        if (found := self._made.get(model)) is None:
            found = self._made[model] = self._make(model)
        return found
