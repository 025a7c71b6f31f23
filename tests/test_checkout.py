"""The commit is that of this package's own checkout, or none."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vflowopt_search import checkout
from vflowopt_search.outcome import versions


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    done = subprocess.run(
        ["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_a_checkout_is_named_by_its_commit_and_marked_where_files_differ(tmp_path: Path) -> None:
    assert checkout.commit(tmp_path) is None
    root = tmp_path / "here"
    root.mkdir()
    git(root, "init", "-q")
    (root / "file").write_text("one")
    git(root, "add", "file")
    git(root, "commit", "-qm", "first")
    git(root, "tag", "-a", "v1", "-m", "v1")
    checkout.commit.cache_clear()
    assert checkout.commit(root) == git(root, "rev-parse", "HEAD")[:12]  # not by its tag
    (root / "file").write_text("two")
    checkout.commit.cache_clear()
    assert checkout.commit(root) == git(root, "rev-parse", "HEAD")[:12] + "+"
    inside = root / "site-packages"
    inside.mkdir()
    assert checkout.commit(inside) is None  # somebody else's checkout


def test_versions_name_it_where_it_is_known() -> None:
    assert versions().get("commit") == checkout.commit()
    assert None not in versions().values()
