"""Where features wait between trials: on a GPU while they fit there, else where it can fetch them.

So do the entropy of their patches and what the unpruned model gave.

A model on the CPU reads them from where they are: mapped from the cache, or in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from vflowopt_search.divergence import Readout
from vflowopt_search.reference.prepared import PreparedSample, PreparedSet, Visuals

Place = Literal["device", "pinned", "host"]

OF_DEVICE = 0.25
"""Share of a GPU's free memory that features may take: trials need the rest."""
OF_HOST = 0.5
"""Share of the free main memory that may be page-locked, which the system cannot take back."""


def place_for(num_bytes: int, free_device: int, free_host: int) -> Place:
    """Where features of this size wait: on the device, page-locked in main memory, or as is."""
    if num_bytes <= OF_DEVICE * free_device:
        return "device"
    return "pinned" if num_bytes <= OF_HOST * free_host else "host"


def settled(prepared: PreparedSet) -> PreparedSet:
    """The samples with their features where trials get them fastest; on the CPU as they are."""
    move = mover(
        [one for sample in prepared.samples for one in _held(sample)],
        prepared.adapter.backbone.device,
    )
    return prepared if move is as_is else moved(prepared, move)


def settled_readout(readout: Readout, device: torch.device) -> Readout:
    """The same for what the unpruned model gave."""
    move = mover([readout.hidden_BLD, readout.logits_BV], device)
    return Readout(hidden_BLD=move(readout.hidden_BLD), logits_BV=move(readout.logits_BV))


def mover(tensors: Sequence[Tensor], device: torch.device) -> Callable[[Tensor], Tensor]:
    """What brings these tensors, all together, to where a device gets them fastest."""
    if device.type != "cuda":
        return as_is
    size = sum(one.nbytes for one in {id(one): one for one in tensors}.values())
    place = place_for(size, torch.cuda.mem_get_info(device)[0], free_memory())
    return {"device": lambda x: x.to(device), "pinned": pinned}.get(place, as_is)


def moved(prepared: PreparedSet, move: Callable[[Tensor], Tensor]) -> PreparedSet:
    """The samples with all features and entropy moved; what samples share is moved once."""
    done: dict[int, Tensor] = {}

    def once(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for one in tensors:
            if id(one) not in done:
                done[id(one)] = move(one)
        return tuple(done[id(one)] for one in tensors)

    def with_moved(visuals: Visuals) -> Visuals:
        entropy = None if visuals.entropy is None else once(visuals.entropy)
        return replace(visuals, features=once(visuals.features), entropy=entropy)

    result = copy(prepared)
    result.samples = [
        replace(sample, visuals={kind: with_moved(v) for kind, v in sample.visuals.items()})
        for sample in prepared.samples
    ]
    return result


def _held(sample: PreparedSample) -> Iterator[Tensor]:
    """All that a sample's images were encoded to."""
    for visuals in sample.visuals.values():
        yield from (*visuals.features, *(visuals.entropy or ()))


def free_memory() -> int:
    """Bytes of main memory that are free; 0 where the system does not say."""
    names = getattr(os, "sysconf_names", {})
    if "SC_AVPHYS_PAGES" not in names:  # not on Linux: nobody tells
        return 0
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pinned(tensor: Tensor) -> Tensor:
    """A page-locked copy, which a GPU fetches while it computes."""
    return tensor.pin_memory()


def as_is(tensor: Tensor) -> Tensor:
    """The tensor itself."""
    return tensor
