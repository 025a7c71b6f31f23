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
        value: T
        try:  # every decode step comes here, more than once
            value = instance.__dict__[self._name].value
        except (KeyError, AttributeError):
            value = self._own(instance).value = self._make()
        return value

    def __set__(self, instance: object, value: T) -> None:
        try:
            instance.__dict__[self._name].value = value
        except KeyError:
            self._own(instance).value = value

    def _own(self, instance: object) -> Any:
        # one `setdefault` cannot be interrupted, so that two threads meet the same object
        return vars(instance).setdefault(self._name, threading.local())


def nothing() -> None:
    """The first value of what is None between forwards."""
