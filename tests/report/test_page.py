"""The report: one file, nothing from outside, drawn by a real browser without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna import Study

from tests.fake_study import fake_run
from vflowopt_search.report.page import sections, write_report

FIGURES = ["history", "comparison", "staircase", "importance", "heatmap"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; apt-get install chromium"
)


@pytest.fixture(scope="module")
def study() -> Study:
    return fake_run(total=30).study


def studies() -> dict[str, Study]:
    return {
        "empty": optuna.create_study(study_name="empty"),
        "one": fake_run(total=1).study,
        "few": fake_run(total=4).study,
    }


class Parsed(HTMLParser):
    """Elements of a page: tags with a source outside, and the drawn and undrawn figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.plots: dict[str, int] = {}
        self.ids: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [given[k] or "" for k in ("src", "href") if k in given and tag != "a"]
        self.ids.append(given.get("id") or "")
        classes = (given.get("class") or "").split()
        if "plot" in classes:
            self._inside = given["id"] or ""
            self.plots[self._inside] = 0
        elif tag == "section":
            self._inside = ""
        elif "main-svg" in classes and self._inside:
            self.plots[self._inside] += 1


def test_the_page_is_one_file_that_fetches_nothing(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path / "report.html", baselines={"random": 2.0})
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Parsed(text)
    assert page.sources == ["data:,"]
    assert list(page.plots) == FIGURES
    assert text.count("plotly.js v") == 1
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_the_summary_says_what_was_given_and_found(study: Study, tmp_path: Path) -> None:
    rows = {"model": "<testbed> & co", "budget": "25 %"}
    write_report(study, tmp_path / "r.html", title="A </script> title", summary=rows)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "<title>A &lt;/script&gt; title</title>" in text
    assert "<td>&lt;testbed&gt; &amp; co</td>" in text
    cells = dict(re.findall(r"<tr><th scope='row'>(.*?)</th><td>(.*?)</td></tr>", text))
    assert list(cells)[:2] == ["model", "budget"]
    assert cells["best divergence"] == f"{min_full(study):.5g}"
    assert cells["trials"].startswith("30, of which ")


def min_full(study: Study) -> float:
    return min(t.value for t in study.trials if t.value and t.user_attrs["samples_seen"] == 24)


def test_names_cannot_end_the_data_of_a_figure(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path / "r.html", baselines={"</script><i id='stray'>": 1.0})
    assert "stray" not in Parsed((tmp_path / "r.html").read_text("utf-8")).ids


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ("empty", []),
        ("one", ["history", "comparison", "staircase", "heatmap"]),
        ("few", ["history", "comparison", "staircase", "heatmap"]),
    ],
)
def test_small_studies_say_what_is_missing(size: str, drawn: list[str], tmp_path: Path) -> None:
    small = studies()[size]
    write_report(small, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert list(Parsed(text).plots) == drawn
    for section in sections(small):
        assert (section.instead in text) == (section.key not in drawn)
    assert "nan" not in "".join(re.findall(r"<td>(.*?)</td>", text))


def test_a_report_that_cannot_be_written_leaves_nothing(study: Study, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        write_report(study, tmp_path / "no-such-folder" / "r.html")


def browse(page: Path, profile: Path) -> tuple[Parsed, list[str]]:
    """The page as Chromium has drawn it, and what was said on its console."""
    assert CHROMIUM is not None
    off = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            *(f"--disable-{thing}" for thing in off),
            f"--user-data-dir={profile}",
            "--window-size=1000,2000",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            page.resolve().as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"HOME": str(profile), "PATH": "/usr/bin:/bin"},
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Parsed(done.stdout), console


@pytest.mark.browser
@needs_chromium
def test_a_browser_draws_every_figure_without_a_complaint(study: Study, tmp_path: Path) -> None:
    write_report(study, tmp_path / "r.html", baselines={"random": 2.0, "</script>": 1.0})
    drawn, console = browse(tmp_path / "r.html", tmp_path / "profile")
    assert console == []
    assert list(drawn.plots) == FIGURES
    assert all(drawings >= 1 for drawings in drawn.plots.values())


@pytest.mark.browser
@needs_chromium
def test_the_browser_would_have_seen_a_broken_page(tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("<div class=plot id=x></div><script>nowhere()</script>")
    drawn, console = browse(tmp_path / "r.html", tmp_path / "profile")
    assert len(console) == 1 and "nowhere is not defined" in console[0]
    assert drawn.plots == {"x": 0}
