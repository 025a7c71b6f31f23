"""Batches that do not fit in memory are halved: one rule for all that is computed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from vflowopt_search.errors import OutOfMemoryError
from vflowopt_search.memory_errors import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


class Room:
    """How many rows are run together: what was asked, less what did not fit in memory before."""

    def __init__(self) -> None:
        self.most: int | None = None

    def rows(self, asked: int) -> int:
        """Rows of the next batch, of the number asked."""
        return asked if self.most is None else min(asked, self.most)

    def was_too_small(self, num_rows: int) -> None:
        """Remember that so many rows did not fit; half of them may."""
        self.most = (num_rows + 1) // 2


def in_halves(
    items: Sequence[Item],
    asked: int,
    compute: Callable[[Sequence[Item]], Result],
    room: Room,
    *,
    number: Callable[[Item], object] | None = None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Compute items in order, batch by batch; a batch that does not fit in memory is halved.

    Args:
        items: what is computed, one row of a batch each.
        asked: rows of a batch, if they fit.
        compute: a batch to its result; is called again with fewer rows where memory was short.
        room: what is known of the memory; no later batch is larger than what fitted.
        number: an item to the number of its sample, which the error names; None names none.

    Yields:
        Each batch and its result.

    Raises:
        OutOfMemoryError: a single row does not fit in memory.
    """
    left = items
    while left:
        batch = left[: room.rows(asked)]
        try:
            result = compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                which = "" if number is None else f" (number {number(batch[0])})"
                raise OutOfMemoryError(
                    f"one sample{which} does not fit in memory; use a smaller dtype, smaller "
                    "images or another device"
                ) from error
            room.was_too_small(len(batch))
            continue
        yield batch, result
        left = left[len(batch) :]
