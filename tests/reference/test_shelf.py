"""What is kept stays within its bound, is shared by processes, and is right or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vflowopt_search.errors import CacheError
from vflowopt_search.reference import shelf as shelf_module
from vflowopt_search.reference.cache import DRAFTS
from vflowopt_search.reference.shelf import CacheFolder, DiskShelf, MemoryShelf, Shelf

KEY = "0123456789abcdef01234567"
KILO = {"x": torch.arange(250.0)}
KILO_FILE = 1000 + 72  # safetensors' header


def disk(root: Path, limit_bytes: int = 10**6) -> DiskShelf:
    return DiskShelf(root / "maps" / KEY, CacheFolder(root, limit_bytes))


def files(root: Path) -> set[str]:
    return {path.stem for path in root.rglob("*.safetensors")}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=30), st.integers(1, 400))
def test_memory_never_holds_more_than_its_bound(puts: list[tuple[int, int]], limit: int) -> None:
    shelf = MemoryShelf(limit)
    for name, size in puts:
        shelf.put(str(name), {"x": torch.full((size,), float(size))})
        held = [found for n in range(6) if (found := shelf.get(str(n))) is not None]
        assert sum(found["x"].nbytes for found in held) == shelf.held_bytes <= limit
        newest = shelf.get(str(name))
        assert (newest is None) == (4 * size > limit)
        assert newest is None or len(newest["x"]) == size


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_the_longest_unused_goes_first(kind: str, tmp_path: Path) -> None:
    limit = 3000 if kind == "memory" else 3 * KILO_FILE + 500
    shelf: Shelf = MemoryShelf(limit) if kind == "memory" else disk(tmp_path, limit)
    for age, name in enumerate(["old", "older", "oldest"]):
        shelf.put(name, KILO)
        if kind == "disk":
            stamp = 1_000_000 - age
            os.utime(tmp_path / "maps" / KEY / f"{name}.safetensors", (stamp, stamp))
    shelf.get("old" if kind == "memory" else "oldest")
    shelf.put("new", KILO)
    everyone = {"old", "older", "oldest", "new"}
    fresh: Shelf = shelf if kind == "memory" else disk(tmp_path)
    assert {name for name in everyone if fresh.get(name) is not None} == {"old", "oldest", "new"}


def test_the_bound_holds_for_all_files_of_a_cache(tmp_path: Path) -> None:
    shelf = disk(tmp_path, 10 * KILO_FILE)
    other = tmp_path / "references" / KEY / "reference.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"x" * 5 * KILO_FILE)
    other.with_suffix(".json").write_text("{}")
    os.utime(other, (1, 1))
    for number in range(30):
        shelf.put(str(number), KILO)
        assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) <= 10 * KILO_FILE
        assert sum(shelf.get(str(n)) is not None for n in range(number + 1)) <= 10
    assert not other.exists()
    assert not other.with_suffix(".json").exists()


def test_clearing_leaves_some_room_so_that_not_every_file_clears_again(tmp_path: Path) -> None:
    shelf = disk(tmp_path, 20 * KILO_FILE)
    for number in range(21):
        shelf.put(str(number), KILO)
        stamp = 1_000_000 + number
        os.utime(tmp_path / "maps" / KEY / f"{number}.safetensors", (stamp, stamp))
    assert files(tmp_path) == {str(number) for number in range(3, 21)}  # 90 % of 20


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """A cache folder may be somebody's data folder: checkpoints are safetensors files too."""
    theirs = [
        tmp_path / "models" / "my-llava" / "model.safetensors",
        tmp_path / "maps" / "of-cities" / "model.safetensors",
        tmp_path / "model.safetensors",
        tmp_path / "maps" / KEY / ".writing-x" / "draft.safetensors",
    ]
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 9 * KILO_FILE)
        path.with_suffix(".json").write_text("{}")
        os.utime(path, (1, 1))
    shelf = disk(tmp_path, 3 * KILO_FILE)
    for number in range(9):
        shelf.put(str(number), KILO)
    assert all(path.exists() and path.with_suffix(".json").exists() for path in theirs)
    assert sum(shelf.get(str(number)) is not None for number in range(9)) <= 3


def test_what_must_stay_leaves_less_room(tmp_path: Path) -> None:
    shelf = disk(tmp_path, 10_000)
    assert shelf.room() == 9000
    needed = tmp_path / "references" / KEY / "reference.safetensors"
    shelf.cache.needed.add(needed)
    assert shelf.room() == 9000
    needed.parent.mkdir(parents=True)
    needed.write_bytes(b"x" * 4000)
    assert shelf.room() == 5000
    assert MemoryShelf(77).room() == 77


def test_what_a_running_search_needs_is_not_deleted(tmp_path: Path) -> None:
    shelf = disk(tmp_path, 4 * KILO_FILE)
    needed = tmp_path / "references" / KEY / "reference.safetensors"
    needed.parent.mkdir(parents=True)
    needed.write_bytes(b"x" * 2 * KILO_FILE)
    os.utime(needed, (1, 1))
    shelf.cache.needed.add(needed)
    for number in range(10):
        shelf.put(str(number), KILO)
    assert needed.exists()
    assert shelf.get("9") is not None


def test_a_deleted_file_goes_on_serving_those_who_mapped_it(tmp_path: Path) -> None:
    mine, theirs = disk(tmp_path), disk(tmp_path)
    mine.put("a", KILO)
    mapped = theirs.get("a")
    assert mapped is not None
    (tmp_path / "maps" / KEY / "a.safetensors").unlink()
    assert torch.equal(mapped["x"], KILO["x"])
    assert theirs.get("a") is None  # and is let go of, so that its place is free


def mapped_but_deleted(root: Path) -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(root) in line and line.endswith("(deleted)")]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
@pytest.mark.parametrize("cleared_by", ["itself", "another"])
def test_cleared_files_give_their_place_back(
    cleared_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deleted file keeps its blocks on the disk as long as a process has it mapped."""
    monkeypatch.setattr(shelf_module, "LOOK_EVERY", 4)
    mine = disk(tmp_path, 4 * KILO_FILE)
    writer = mine if cleared_by == "itself" else disk(tmp_path, 4 * KILO_FILE)
    for number in range(20):
        writer.put(str(number), KILO)
        assert mine.get(str(number)) is not None
    for _ in range(4):
        mine.get("19")
    assert len(files(tmp_path)) <= 4
    assert mapped_but_deleted(tmp_path) == []


def test_another_process_may_finish_while_this_one_looks_at_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft's folder that has been listed is gone before it is looked into."""
    shelf, folder = disk(tmp_path, 6 * KILO_FILE), tmp_path / "maps" / KEY
    shelf.put("a", KILO)
    finished: list[str] = []
    scandir = os.scandir

    def after_it_is_gone(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name.startswith(f"{DRAFTS}other"):
            finished.append(Path(path).name)
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", after_it_is_gone)
    for number in range(9):
        (folder / f"{DRAFTS}other{number}").mkdir(parents=True)
        shelf.put(f"new/{number}", KILO)
    assert len(finished) == 9
    assert len(files(tmp_path)) <= 6


def test_a_draft_counts_while_it_is_written_and_is_deleted_when_its_process_is_dead(
    tmp_path: Path,
) -> None:
    fresh, dead = (tmp_path / "maps" / KEY / "4" / f".writing-{name}" for name in ("a", "b"))
    for draft in (fresh, dead):
        draft.mkdir(parents=True)
        (draft / "x.safetensors").write_bytes(b"x" * 4 * KILO_FILE)
    for path in (dead / "x.safetensors", dead):
        os.utime(path, (1, 1))
    shelf = disk(tmp_path, 8 * KILO_FILE)
    for number in range(9):
        shelf.put(str(number), KILO)
        assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) <= 8 * KILO_FILE
    assert fresh.exists()
    assert not dead.exists()


def test_a_torn_file_is_not_there(tmp_path: Path) -> None:
    disk(tmp_path).put("a", KILO)
    path = tmp_path / "maps" / KEY / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert disk(tmp_path).get("a") is None


def test_another_process_reads_what_this_one_wrote(tmp_path: Path) -> None:
    disk(tmp_path).put("4/abc", KILO)
    program = (
        "import sys; from pathlib import Path;"
        "from vflowopt_search.reference.shelf import CacheFolder, DiskShelf;"
        "root = Path(sys.argv[1]);"
        f"shelf = DiskShelf(root / 'maps' / '{KEY}', CacheFolder(root, 10**6));"
        "print(float(shelf.get('4/abc')['x'].sum()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) == float(KILO["x"].sum())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(CacheError, match=r"cannot be written .* let it hold less with --cache-gb"):
        disk(tmp_path).put("a", KILO)
