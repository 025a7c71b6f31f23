"""The report: one file, nothing from outside, whatever the runs hold."""

from __future__ import annotations

import gzip
import html
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs

from tests.fake_study import fake_run
from tests.report.overlays import whole_run
from vflowopt_search import trials
from vflowopt_search.report import frames
from vflowopt_search.report.overlay_html import overlay_cards
from vflowopt_search.report.page import write_report
from vflowopt_search.report.runs import Run
from vflowopt_search.report.section import TABS
from vflowopt_search.report.sections import sections
from vflowopt_search.report.words import FOUND

ALLOWANCE = 1_000_000


@pytest.fixture(scope="module")
def run() -> Run:
    outcome = fake_run(total=30)
    return Run(outcome.study, outcome.best, {"random": 2.0}, command="vflowopt-search search")


def finished(total: int) -> Run:
    outcome = fake_run(total=total)
    return Run(outcome.study, outcome.best)


def small_runs() -> dict[str, Run]:
    failed = optuna.create_study(study_name="failed")
    failed.add_trial(create_trial(state=TrialState.FAIL, user_attrs={trials.FAILURE: "nan"}))
    return {
        "empty": Run(optuna.create_study(study_name="empty")),
        "failed": Run(failed),
        "one": finished(1),
        "few": finished(4),
    }


class Parsed(HTMLParser):
    """Elements of a page: what it would fetch, its figures, its ids, its tabs."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.text = page.read_text("utf-8")
        self.sources: list[str] = []
        self.plots: list[str] = []
        self.ids: list[str] = []
        self.tabs: list[str] = []
        self.told: dict[str, str] = {}
        self.panels: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.sources += [given[k] for k in ("src", "href") if k in given and tag != "a"]
        self.ids += [given["id"]] if "id" in given else []
        if given.get("role") == "tab":
            self.tabs.append(given["data-tab"])
        if "plot" in given.get("class", "").split():
            self.plots.append(given["id"])
            self.told[given["id"]] = given["aria-label"]
        if given.get("role") == "tabpanel":
            assert given["aria-labelledby"] in self.ids
            self.panels.append(given["id"])

    def drawn(self, run: int = 0) -> list[str]:
        """Keys of the sections of a run that have figures."""
        keys = [plot.rsplit("-", 2) for plot in self.plots]
        return list(dict.fromkeys(key for key, of, _ in keys if of == str(run)))


def written(runs: Run | list[Run], folder: Path) -> Parsed:
    write_report(runs, folder / "report.html")
    return Parsed(folder / "report.html")


def test_the_page_is_one_file_that_fetches_nothing(run: Run, tmp_path: Path) -> None:
    page = written(run, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert page.sources == ["data:,"]
    assert page.drawn() == [
        "comparison",
        "history",
        "staircase",
        "importance",
        "parallel",
        "slice",
        "heatmap",
    ]
    assert page.tabs == [key for key in TABS if key != "compare"]
    assert len(page.ids) == len(set(page.ids))
    assert "https://" not in re.sub(r"<script.*?</script>", "", page.text, flags=re.DOTALL)


def test_the_page_carries_plotly_whole_and_stays_small(run: Run, tmp_path: Path) -> None:
    page = written(run, tmp_path)
    [packed] = re.findall(r'id="plotly">(.*?)</script>', page.text)
    assert gzip.decompress(b64decode(packed)).decode() == get_plotlyjs()
    assert len(page.text) < 3_000_000


def test_the_same_run_gives_the_same_page(run: Run, tmp_path: Path) -> None:
    assert written(run, tmp_path).text == written(run, tmp_path).text


def test_the_summary_says_what_was_found(run: Run, tmp_path: Path) -> None:
    write_report(run, tmp_path / "r.html", title="A </script> title & co")
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "<title>A &lt;/script&gt; title &amp; co</title>" in text
    cells = dict(re.findall(r"<tr><th scope='row'>(.*?)</th><td>(.*?)</td></tr>", text))
    assert list(cells)[:2] == ["model", "calibration"]
    lowest = min(t.value for t in run.study.trials if t.value and trials.is_full(t))
    assert cells["found"].startswith(f"divergence {lowest:.4g} in trial")
    assert cells["trials"].startswith("30 done, ")
    words = "<code><span>vflowopt-search</span> <span>search</span></code>"
    assert words in text  # which are broken between each other only


def test_the_headline_compares_with_the_closest_strategy_of_the_chart(
    run: Run, tmp_path: Path
) -> None:
    shown = frames.comparison(run.study, run.baselines)
    others = [(d, n) for d, n in zip(shown.divergence, shown.name, strict=True) if n != FOUND]
    divergence, name = min(others)
    assert name != "random"  # the textbook has a closer one, which the chart shows too
    page = written(run, tmp_path).text
    found = shown.divergence[shown.name.index(FOUND)]
    assert f"{divergence / found:.1f} x" in page
    assert f"lower divergence than {name}" in page


def test_the_headline_owns_that_a_plain_strategy_is_closer(run: Run, tmp_path: Path) -> None:
    found = min(frames.comparison(run.study).divergence)
    beaten = replace(run, baselines={"uniform": found / 4})
    page = written(beaten, tmp_path)
    assert "4.0 x" in page.text and "higher divergence than uniform" in page.text
    nearly = written(replace(run, baselines={"uniform": found / 1.04}), tmp_path)
    assert "<b>1.04 x</b><span>higher divergence than uniform" in nearly.text


def test_why_textbook_strategies_have_no_held_out_value(run: Run) -> None:
    """They are rows beside others that have one."""
    why = "Textbook strategies were measured as trials of the search, so they have no held-out"
    page = "".join(section.before for section in sections(run, 0))
    assert why not in page
    rows = [
        {"name": name, "retained": 0.25, "divergence": 2.0, "held_out": 1.75}
        for name in ("random", "unpruned")
    ]
    beside = replace(run, baselines={"random": 2.0}, summary={"comparison": rows})
    page = "".join(section.before for section in sections(beside, 0))
    assert why in page


@pytest.mark.parametrize("held_out", [False, True])
def test_a_baseline_that_is_closer_is_cautioned_about(
    run: Run, tmp_path: Path, held_out: bool
) -> None:
    """The report says what the search says on the terminal."""
    words = "Caution: baselines are closer to the unpruned model than the strategy found: uniform"
    assert words not in written([run, finished(4)], tmp_path).text
    found = min(frames.comparison(run.study).divergence)
    beaten = replace(run, baselines={"uniform": found / 4})
    if held_out:
        assert run.strategy is not None
        origin = run.strategy.provenance
        assert origin is not None and origin.objective is not None
        measured = origin.objective.model_copy(update={"held_out": 0.5})
        origin = origin.model_copy(update={"objective": measured})
        rows = [{"name": "uniform", "retained": 0.25, "divergence": 9.0, "held_out": 0.25}]
        strategy = run.strategy.model_copy(update={"provenance": origin})
        beaten = replace(run, strategy=strategy, summary={"comparison": rows})
        words += " on held-out samples (0.25, found 0.5)"
    page = written(beaten, tmp_path).text
    assert words in page and page.count("role='note'") == 2  # and that of few trials
    assert words.removeprefix("Caution: ") in written([beaten, run], tmp_path).text


def test_every_figure_is_told_in_words(run: Run, tmp_path: Path) -> None:
    page = written(run, tmp_path)
    assert len(page.told) == len(page.plots) and all(page.told.values())
    assert page.told["history-0-0"].startswith("30 trials lowered the divergence to ")
    assert page.told["comparison-0-0"].startswith("Divergence: found ")
    assert page.panels == [f"panel-{tab}-0" for tab in page.tabs]


def test_importance_of_few_trials_comes_with_a_caution(run: Run, tmp_path: Path) -> None:
    words = "Caution: only 30 trials were measured, and the 5 of lowest divergence"
    assert words in written(run, tmp_path).text
    assert "Caution: only" not in written(finished(50), tmp_path).text


def test_what_was_found_is_never_called_the_best(run: Run, tmp_path: Path) -> None:
    page = written([run, finished(12)], tmp_path)
    shown = re.sub(r"<(script|style).*?</\1>", "", page.text, flags=re.DOTALL)
    assert "found" in shown and not re.search(r"\bbest\b", shown)
    data = "".join(re.findall(r"<script type=.application/json.*?</script>", page.text))
    assert "found" in data and not re.search(r"\bbest\b", data)


def test_names_cannot_end_the_data_of_a_figure(run: Run, tmp_path: Path) -> None:
    evil = Run(run.study, run.strategy, {"</script><i id='stray'>": 1.0}, command="<i id='stray'>")
    assert "stray" not in written(evil, tmp_path).ids


@pytest.mark.parametrize("size", ["empty", "failed", "one", "few"])
def test_small_studies_say_what_is_missing(size: str, tmp_path: Path) -> None:
    small = small_runs()[size]
    page = written(small, tmp_path)
    some = {
        "one": ["comparison", "history", "staircase", "heatmap"],
        "few": ["comparison", "history", "staircase", "parallel", "slice", "heatmap"],
    }
    assert page.drawn() == some.get(size, [])
    for section in sections(small, ALLOWANCE):
        assert (html.escape(section.instead) in page.text) == section.empty or not section.instead
    assert [plot for plot in page.plots if not page.told[plot]] == []
    assert "nan" not in "".join(re.findall(r"<td.*?>(.*?)</td>", page.text)).lower()


def test_overlays_and_thumbnails_come_from_the_folder(tmp_path: Path) -> None:
    page = written(whole_run(tmp_path / "run"), tmp_path)
    pictures = [source for source in page.sources if source.startswith("data:image/webp;base64,")]
    thumbnails = 8
    panels = 9 * (1 + 3 + 3 + 6 - 1 + 1)  # the image, three stages, recycled, two maps; no image
    assert len(pictures) == thumbnails + panels
    assert page.text.count("<article class='card'>") == 9
    assert "What is &lt;b&gt;3&lt;/b&gt;?" in page.text
    assert "2 of its 5 views are shown" in page.text
    told = "4 from layer 0 (1 of them corresponds to no image patch, as row separators do)"
    assert f"6 visual tokens, {told}" in page.text
    assert "; retention ratio on this sample 45.8%, mean over the decoder layers." in page.text
    told = "45.8% in whole tokens on 9 samples"
    assert f"<th scope='row'>measured retention ratio</th><td>{told}</td>" in page.text


def test_where_there_is_no_room_some_of_each_role_are_shown(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    everything = overlay_cards(run, 10**9)
    one = len(everything) // 9
    some = overlay_cards(run, 3 * one + one // 2)
    assert some.count("<article") == 3
    assert [some.count(f"role {role}") for role in ("worst", "median", "best")] == [1, 1, 1]
    assert "6 more samples are in" in some
    assert overlay_cards(run, 1).count("<article") == 1


def test_several_runs_share_a_page(run: Run, tmp_path: Path) -> None:
    other = Run(fake_run(total=4).study, baselines={"random": 2.5})
    page = written([run, other], tmp_path)
    assert page.tabs[0] == "compare"
    assert page.plots[0] == "budget-all-0"
    assert page.drawn(0)[0] == page.drawn(1)[0] == "comparison"
    assert page.text.count("<option ") == 2
    assert len(page.ids) == len(set(page.ids))


def test_a_report_that_cannot_be_written_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        write_report(run, tmp_path / "no-such-folder" / "r.html")
