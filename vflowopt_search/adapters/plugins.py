"""Adapters of other packages: entry points of the group `vflowopt_search.adapters`.

The name of an entry point is a `config.model_type`, its value the `Adapter` subclass that serves
it. Nothing is imported before a model of that type, or the list of families, is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points

from vflowopt_search.adapters.base import Adapter, Family
from vflowopt_search.errors import ModelError

_log = logging.getLogger(__name__)

GROUP = "vflowopt_search.adapters"

# what a module of others raises at its import that is broken, or made for other versions
BROKEN = (
    ImportError,
    AttributeError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
)


def plugin_adapter(model_type: str) -> type[Adapter] | None:
    """The adapter that an installed package brings for this type of model, None without one.

    Raises:
        ModelError: a package promises one, but it cannot be loaded or is no adapter.
    """
    found = entry_points(group=GROUP, name=model_type)
    return _loaded(next(iter(found))) if found else None


def plugin_families(served: Container[str]) -> list[Family]:
    """What installed packages add to the families `served`; of a broken one, what is wrong."""
    return [_family(entry) for entry in entry_points(group=GROUP) if entry.name not in served]


def _family(entry: EntryPoint) -> Family:
    try:
        return _loaded(entry).family
    except ModelError as error:
        return Family(entry.name, inputs=(), positions=(), scores=(), limits=str(error))


def _loaded(entry: EntryPoint) -> type[Adapter]:
    package = entry.dist.name if entry.dist is not None else entry.module
    try:
        adapter = entry.load()
    except BROKEN as error:
        _log.debug("%s cannot be loaded", entry.value, exc_info=error)
        raise ModelError(
            f"the package {package} offers an adapter for {entry.name} models, but {entry.value} "
            f"cannot be loaded ({type(error).__name__}: {error}); repair or uninstall {package}"
        ) from error
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise ModelError(
            f"the package {package} offers an adapter for {entry.name} models, but {entry.value} "
            f"is no subclass of vflowopt_search.adapters.base.Adapter; repair or uninstall "
            f"{package}"
        )
    served = getattr(adapter, "family", None)
    if not isinstance(served, Family) or served.model_type != entry.name:
        raise ModelError(
            f"the package {package} offers an adapter for {entry.name} models, but the `family` "
            f"of {entry.value} is another; repair or uninstall {package}"
        )
    return adapter
