"""State of a forward in progress: forwards of several threads may run on one model at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class PerThread(Generic[T]):
    """An attribute of which every thread sees a value of its own.

    Args:
        make: gives a thread's first value.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_per_thread_{name}"

    @overload
    def __get__(self, instance: None, owner: type) -> PerThread[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> PerThread[T] | T:
        if instance is None:
            return self
        own = self._own(instance)
        if not hasattr(own, "value"):
            own.value = self._make()
        value: T = own.value
        return value

    def __set__(self, instance: object, value: T) -> None:
        self._own(instance).value = value

    def _own(self, instance: object) -> Any:
        found = vars(instance).get(self._name)
        # one `setdefault` cannot be interrupted, so that two threads meet the same object
        return found or vars(instance).setdefault(self._name, threading.local())


def nothing() -> None:
    """The first value of what is None between forwards."""
