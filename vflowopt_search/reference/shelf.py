"""Tensors that trials, processes and runs share: in memory, or mapped from files; in bounds.

A file on a shelf is written whole or not at all and then only mapped into memory: the operating
system holds its pages once for all processes and gives them up when memory is short. The bound
counts every tensor file under the cache folder; those not used for longest go first, also while
another process has them mapped, which then lets go of them soon. What a killed process was writing
is counted for an hour and then deleted.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vflowopt_search.errors import CacheError
from vflowopt_search.reference.cache import DRAFTS, writing
from vflowopt_search.reference.fingerprint import key_digest

GB = 10**9
DISK_GB = 20.0
"""What a cache folder may hold by default."""
MEMORY_GB = 4.0
"""What is held in memory by default, where there is no folder."""
AFTER_CLEARING = 0.9
"""Share of the bound that is left full, so that not every file to come clears again."""
DEAD_AFTER = 3600.0
"""Seconds without a change after which nobody writes on a draft any more."""
LOOK_EVERY = 256
"""Files used between two looks at which of the mapped ones are gone."""

OF_THE_CACHE = ("references", "answers", "maps")
"""The folders that the bound is about; below each, one folder per key."""
OURS = re.compile("[0-9a-f]{24}")
"""What `key_digest` calls a folder."""

Tensors = Mapping[str, Tensor]


class Shelf(Protocol):
    """Named groups of tensors, any of which may be gone."""

    def room(self) -> float:
        """Bytes that it can hold at a time."""
        ...

    def get(self, name: str) -> Tensors | None:
        """The tensors put under this name; None if they were never put or are gone."""
        ...

    def put(self, name: str, tensors: Tensors) -> None:
        """Keep tensors, and let go of what was not used for longest until they fit."""
        ...


class MemoryShelf:
    """Keeps tensors where they are; gone with the process."""

    def __init__(self, limit_bytes: int) -> None:
        """Hold at most `limit_bytes`."""
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: OrderedDict[str, Tensors] = OrderedDict()

    def room(self) -> float:
        """The bound."""
        return self.limit_bytes

    def get(self, name: str) -> Tensors | None:
        """The tensors put under this name; None if they were never put or are gone."""
        found = self._held.get(name)
        if found is not None:
            self._held.move_to_end(name)
        return found

    def put(self, name: str, tensors: Tensors) -> None:
        """Keep tensors, and let go of what was not used for longest until they fit."""
        self.held_bytes += _nbytes(tensors) - _nbytes(self._held.pop(name, {}))
        self._held[name] = tensors
        while self.held_bytes > self.limit_bytes:
            self.held_bytes -= _nbytes(self._held.popitem(last=False)[1])


class CacheFolder:
    """A folder of tensor files that all together stay within a bound.

    Attributes:
        root: the folder.
        limit_bytes: what its tensor files may take.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        """Bound what is under `root`."""
        self.root, self.limit_bytes = root, limit_bytes
        self.needed: set[Path] = set()
        self._added: float = inf

    def added(self, path: Path) -> bool:
        """Count a file just written, and delete the longest unused ones if the bound is passed.

        Returns whether files were looked at and perhaps deleted.

        Files in `needed`, without which a running search could not go on, are left. Other processes
        write here too, so that the folder is looked at every twentieth of the bound.
        """
        self._added += _size_of(path)
        if self._added <= self.limit_bytes / 20:
            return False
        self._clear({path, *self.needed})
        self._added = 0
        return True

    def room(self) -> float:
        """Bytes that stay when the folder was cleared, besides the files in `needed`."""
        return AFTER_CLEARING * self.limit_bytes - sum(map(_size_of, self.needed))

    def _clear(self, spared: set[Path]) -> None:
        files = sorted(self._files())
        left = sum(size for _, size, _ in files) + self._drafts()
        if left <= self.limit_bytes:
            return
        for _, size, path in files:
            if left <= AFTER_CLEARING * self.limit_bytes:
                return
            if path not in spared:
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
                left -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size and path of every tensor file of ours; no other is touched."""
        found = []
        for folder, inside, names in self._folders():
            inside[:] = [name for name in inside if not name.startswith(DRAFTS)]
            for path in (folder / name for name in names if name.endswith(".safetensors")):
                try:
                    status = path.stat()
                except FileNotFoundError:  # another process clears
                    continue
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _drafts(self) -> int:
        """Bytes that are being written; what a dead process left is deleted."""
        drafts = [
            folder / name
            for folder, inside, _ in self._folders()
            for name in inside
            if name.startswith(DRAFTS)
        ]
        return sum(map(_size_of_draft, drafts))

    def _folders(self) -> Iterator[tuple[Path, list[str], list[str]]]:
        """Folders of ours with what is in them; one that vanishes meanwhile is passed over."""
        for kind in OF_THE_CACHE:
            for name in _names_in(self.root / kind):
                if OURS.fullmatch(name):
                    for folder, inside, files in os.walk(self.root / kind / name):
                        yield Path(folder), inside, files


def _names_in(folder: Path) -> list[str]:
    """What is in a folder; nothing in one that is not there."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _size_of_draft(folder: Path) -> int:
    """Bytes of a draft that is being written; 0 of one that nobody writes on, which is deleted."""
    size, changed = 0, 0.0
    for path in (folder, *(folder / name for name in _names_in(folder))):
        try:
            status = path.stat()
        except FileNotFoundError:  # it has been finished
            continue
        size += status.st_size if path != folder else 0
        changed = max(changed, status.st_mtime)
    if time.time() - changed < DEAD_AFTER:
        return size
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _size_of(path: Path) -> int:
    """Bytes of a file; 0 where another process has cleared it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class DiskShelf:
    """Keeps tensors in files of a folder within a bounded cache, mapped into memory when used."""

    def __init__(self, folder: Path, cache: CacheFolder) -> None:
        """Keep one file per name in `folder`, which lies in the cache."""
        self.folder, self.cache = folder, cache
        self._mapped: dict[str, Tensors] = {}
        self._uses = 0

    def room(self) -> float:
        """What the cache has besides the files that it must keep."""
        return self.cache.room()

    def get(self, name: str) -> Tensors | None:
        """The tensors put under this name, by whatever process; None if they are gone.

        What was cleared is let go of, for a mapped file keeps its place on the disk.
        """
        path = self._path(name)
        self._let_go()
        try:
            os.utime(path)
            if name not in self._mapped:
                self._mapped[name] = load_file(path)
        except (OSError, SafetensorError):
            self._mapped.pop(name, None)
            return None
        return self._mapped[name]

    def put(self, name: str, tensors: Tensors) -> None:
        """Keep tensors in a file; the oldest files of the cache go until they fit.

        Raises:
            CacheError: the folder cannot be written.
        """
        path = self._path(name)
        with writing(path) as draft:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, draft)
            draft.replace(path)
        self._mapped.pop(name, None)
        self._let_go(now=self.cache.added(path))

    def _let_go(self, *, now: bool = False) -> None:
        """Let go of files that are gone, of whatever name: now, or every `LOOK_EVERY` uses."""
        self._uses += 1
        if now or self._uses % LOOK_EVERY == 0:
            kept = {n: tensors for n, tensors in self._mapped.items() if self._path(n).exists()}
            self._mapped = kept

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def cache_folder(root: Path, cache_gb: float | None) -> CacheFolder:
    """The cache under `root`, bounded.

    Raises:
        CacheError: the bound is not positive.
    """
    if cache_gb is not None and not cache_gb > 0:
        raise CacheError(f"the cache may hold {cache_gb} GB, but must hold some; allow more")
    return CacheFolder(root, round(GB * (DISK_GB if cache_gb is None else cache_gb)))


OF_THE_SAMPLES = frozenset({"calibration", "first_inputs"})
"""Parts of a reference's key that an image's attention map does not depend on."""


def map_shelf(key: Mapping[str, str], folder: CacheFolder | None, cache_gb: float | None) -> Shelf:
    """Where the attention maps of one model are kept, whatever the samples."""
    if folder is None:
        return MemoryShelf(round(GB * (MEMORY_GB if cache_gb is None else cache_gb)))
    of_the_model = {name: value for name, value in key.items() if name not in OF_THE_SAMPLES}
    return DiskShelf(folder.root / "maps" / key_digest(of_the_model), folder)


def _nbytes(tensors: Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
