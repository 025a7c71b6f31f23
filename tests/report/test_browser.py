"""A real browser draws the report: no complaint, every figure, tabs, colours, a phone's width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pytest

from tests.browser import CHROMIUM, REQUIRED, Page, browser
from tests.fake_study import fake_run
from tests.report.overlays import whole_run
from vflowopt_search.report.page import write_report
from vflowopt_search.report.runs import Run
from vflowopt_search.report.sections import TABS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED,
        reason="no chromium on the PATH; apt-get install chromium",
    ),
]
VISIBLE = "[...document.querySelectorAll('.plot')].filter(p => p.offsetParent)"
SHOWN = f"{VISIBLE}.map(p => p.id)"
UNDRAWN = f"{VISIBLE}.filter(p => !p.querySelector('.main-svg')).map(p => p.id)"
WIDTHS = "[document.documentElement.scrollWidth, window.innerWidth]"
PICK = "document.querySelector('.pick').offsetParent === null"
PAPER = "getComputedStyle(document.body).backgroundColor"
INK = "document.querySelector('.shown .xtick text').style.fill"
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(18, 22, 28)"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with TemporaryDirectory() as profile, browser(Path(profile)) as opened:
        yield opened


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with everything in its folder."""
    folder = tmp_path_factory.mktemp("one")
    write_report(whole_run(folder), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two runs."""
    folder = tmp_path_factory.mktemp("several")
    other = Run(fake_run(total=12).study, baselines={"random": 2.5})
    write_report([whole_run(folder), other], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(autouse=True)
def no_complaint(page: Page) -> Iterator[None]:
    page.complaints.clear()
    page.size(1100, 900)
    page.prefers("light")
    yield
    assert page.complaints == []


def click(page: Page, selector: str) -> None:
    page.tell(f"document.querySelector({selector!r}).click()")


def test_every_tab_draws_its_figures(page: Page, one: Path) -> None:
    page.open(one)
    drawn = []
    for tab in TABS:
        if tab != "compare":
            click(page, f"#tab-{tab}")
            assert page.tell(UNDRAWN) == []
            drawn += page.tell(SHOWN)
            assert page.tell("document.querySelector('[aria-selected=true]').dataset.tab") == tab
            assert page.tell("location.hash") == f"#{tab}"
    keys = {plot.rsplit("-", 2)[0] for plot in drawn}
    assert keys == {
        "comparison",
        "history",
        "staircase",
        "importance",
        "parallel",
        "slice",
        "heatmap",
    }
    assert len(drawn) == page.tell("document.querySelectorAll('.plot').length")


def test_pictures_are_whole(page: Page, one: Path) -> None:
    page.open(one, "#overlays")
    broken = "[...document.images].filter(i => !i.naturalWidth).length"
    decoded = "Promise.all([...document.images].map(i => i.decode()))"
    assert page.tell(f"{decoded}.then(() => {broken})") == 0
    assert page.tell("document.querySelectorAll('.shown .panels img').length") > 50


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_never_scrolls_sideways(page: Page, several: Path, width: int) -> None:
    page.size(width, 800, phone=True)
    page.open(several)
    for tab in TABS:
        click(page, f"#tab-{tab}")
        across, window = page.tell(WIDTHS)
        assert across <= window == width, tab
        assert page.tell(UNDRAWN) == []


def test_colours_follow_the_system_until_they_are_chosen(page: Page, one: Path) -> None:
    page.open(one, "#search")
    page.tell("localStorage.clear()")
    page.open(one, "#summary")
    assert page.tell(PAPER) == LIGHT
    light_ink = page.tell(INK)
    page.prefers("dark")
    assert page.tell(PAPER) == DARK
    page.wait(f"{INK} !== {light_ink!r}")
    click(page, "[data-choose=light]")
    assert (page.tell(PAPER), page.tell(INK)) == (LIGHT, light_ink)
    click(page, "[data-choose=dark]")
    page.prefers("light")
    assert page.tell(PAPER) == DARK
    page.open(one, "#search")
    assert page.tell(PAPER) == DARK  # it is remembered
    assert page.tell("document.querySelector('[aria-pressed=true]').textContent") == "dark"
    click(page, "[data-choose=auto]")
    assert page.tell(PAPER) == LIGHT


def test_runs_are_switched_and_addressed(page: Page, several: Path) -> None:
    page.open(several)
    assert page.tell("document.querySelector('[aria-selected=true]').dataset.tab") == "compare"
    assert page.tell(PICK)
    click(page, "#tab-search")
    assert page.tell(SHOWN) == ["history-0-0"] and not page.tell(PICK)
    page.tell("document.getElementById('run').value = '1'")
    page.tell("document.getElementById('run').dispatchEvent(new Event('change'))")
    assert page.tell(SHOWN) == ["history-1-0"]
    assert page.tell("location.hash") == "#search/1"
    page.open(several, "#strategy/1")
    assert page.tell(SHOWN) == ["staircase-1-0"]
    page.open(several, "#nonsense/7")
    assert page.tell(SHOWN) == ["budget-all-0", "staircases-all-0", "progress-all-0"]


def test_tabs_can_be_reached_by_keyboard(page: Page, one: Path) -> None:
    page.open(one)
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: %r}))"
    page.tell("document.querySelector('nav button').focus()")
    page.tell(press % "ArrowRight")
    assert page.tell("document.activeElement.dataset.tab") == "search"
    page.tell(press % "ArrowLeft")
    page.tell(press % "ArrowLeft")
    assert page.tell("document.querySelector('[aria-selected=true]').dataset.tab") == "overlays"


def test_an_empty_study_is_a_page_too(page: Page, tmp_path: Path) -> None:
    write_report(Run(optuna.create_study(study_name="empty")), tmp_path / "r.html")
    page.open(tmp_path / "r.html")
    for tab in TABS:
        if tab != "compare":
            click(page, f"#tab-{tab}")
            assert (
                page.tell("document.querySelector('.shown .nothing') !== null") or tab == "summary"
            )


def test_the_browser_sees_a_broken_page(page: Page, tmp_path: Path) -> None:
    script = "document.documentElement.dataset.ready = 'yes'; nowhere()"
    (tmp_path / "r.html").write_text(f"<img src=http://127.0.0.1:9/x><script>{script}</script>")
    page.open(tmp_path / "r.html")
    page.wait("document.readyState === 'complete'")
    told = " ".join(page.complaints)
    assert "nowhere is not defined" in told and "request: http://127.0.0.1:9/x" in told
    page.complaints.clear()
