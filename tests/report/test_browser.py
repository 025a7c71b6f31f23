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
from vflowopt_search.report.section import TABS

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
# Of each figure the texts that reach over its edge, and neighbours on an axis that touch.
CUT_OFF = f"""{VISIBLE}.flatMap(p => {{
  const edge = p.getBoundingClientRect();
  return [...p.querySelectorAll('text')].filter(t => t.textContent && t.getClientRects().length)
    .filter(t => {{
      const box = t.getBoundingClientRect();
      return box.left < edge.left - 1 || box.right > edge.right + 1;
    }}).map(t => p.id + ': ' + t.textContent);
}})"""
# Texts in a figure that lie over each other, or over lines without a background of their own.
STRUCK = f"""{VISIBLE}.flatMap(p => {{
  const found = [...p.querySelectorAll('.annotation')].map(a => [a, a.getBoundingClientRect()]);
  const over = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom
    && b.top < a.bottom;
  const axes = [...p.querySelectorAll('.ytick text')].map(t => [t, t.getBoundingClientRect()]);
  const bare = found.filter(([a]) => !(a.querySelector('.bg')?.style.fillOpacity > 0.5));
  const pairs = found.flatMap(([a, box], n) => [...found.slice(n + 1), ...axes]
    .filter(([_, other]) => over(box, other)).map(([b]) => a.textContent + '/' + b.textContent));
  const drawn = [...p.querySelectorAll('.textpoint')].map(t => t.textContent);
  return [...bare.map(([a]) => a.textContent), ...pairs, ...drawn].map(t => p.id + ': ' + t);
}})"""
OVERLAPPING = f"""{VISIBLE}.flatMap(p => {{
  const boxes = [...p.querySelectorAll('.xtick text')].map(t => t.getBoundingClientRect());
  boxes.sort((one, other) => one.left - other.left);
  return boxes.slice(1).filter((box, n) => box.left < boxes[n].right).map(() => p.id);
}})"""
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
    long = "a-plain-strategy-with-a-name-that-no-phone-has-room-for"
    other = Run(fake_run(total=12).study, baselines={"random": 2.5, long: 1.5})
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


@pytest.mark.parametrize("how", ["button", "system", "print"])
def test_figures_of_hidden_tabs_follow_the_colours(page: Page, one: Path, how: str) -> None:
    """A tab that was drawn, left, and is shown again has the colours of now."""
    page.prefers("dark" if how == "print" else "light")
    page.open(one)
    click(page, "[data-choose=auto]")
    click(page, "#tab-search")
    before = page.tell(INK)
    click(page, "#tab-summary")
    if how == "button":
        click(page, "[data-choose=dark]")
    elif how == "system":
        page.prefers("dark")
        page.wait(f"{INK} !== {before!r}")
    else:
        page.tell("window.dispatchEvent(new Event('beforeprint'))")
        page.tell("window.dispatchEvent(new Event('afterprint'))")
    now = page.tell(INK)
    click(page, "#tab-search")
    assert page.tell(INK) == now
    assert (now == before) == (how == "print")
    click(page, "[data-choose=auto]")


def test_a_turned_phone_draws_every_tab_at_its_new_width(page: Page, one: Path) -> None:
    page.size(844, 390, phone=True)
    page.open(one)
    click(page, "#tab-search")
    click(page, "#tab-summary")
    drawn = "document.querySelector('.shown .main-svg').clientWidth"
    page.wait(f"{drawn} > 700")
    page.size(390, 844, phone=True)
    page.wait(f"300 < {drawn} && {drawn} < 390")
    click(page, "#tab-search")
    assert 300 < page.tell(drawn) < 390
    page.wait("innerWidth === 390")
    assert page.tell(WIDTHS) == [390, 390]


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
    chosen = "document.querySelector('[aria-selected=true]')"
    assert page.tell(f"{chosen}.dataset.tab") == "overlays"
    page.tell(press % "Home")
    assert page.tell(f"{chosen}.dataset.tab") == "summary"
    page.tell(press % "End")
    assert page.tell(f"{chosen}.dataset.tab") == "overlays"
    shown = f"document.getElementById({chosen}.getAttribute('aria-controls'))"
    assert page.tell(f"{shown}.classList.contains('shown') && {shown}.tabIndex === 0")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_in_a_figure_is_cut_off_or_lies_over_another(
    page: Page, several: Path, width: int
) -> None:
    page.size(width, 900, phone=width < 640)
    page.open(several)
    for tab in TABS:
        click(page, f"#tab-{tab}")
        assert page.tell(CUT_OFF) == [], tab
        assert page.tell(OVERLAPPING) == [], tab
        assert page.tell(STRUCK) == [], tab


def test_printed_are_all_tabs_on_white(page: Page, one: Path) -> None:
    page.prefers("dark")
    page.open(one)
    page.tell("window.dispatchEvent(new Event('beforeprint'))")
    assert page.tell(PAPER) == LIGHT
    assert page.tell("document.querySelectorAll('.panel').length") == len(TABS) - 1
    assert page.tell("[...document.querySelectorAll('.panel')].every(p => p.offsetHeight)")
    assert page.tell(UNDRAWN) == [] and not page.tell("document.querySelector('nav').offsetHeight")
    page.tell("window.dispatchEvent(new Event('afterprint'))")
    assert page.tell(PAPER) == DARK and page.tell(SHOWN) == ["comparison-0-0"]


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
