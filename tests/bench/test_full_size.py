"""The full-size program, run in small; and that its full size is LLaVA-OneVision-7B's."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.bench.full_size import (
    BUDGETS,
    full,
    main,
    strategies_on,
    subject_of,
    tiny,
    trial_seconds,
)
from tests.bench.full_size_rows import speed_rows
from tests.bench.subjects import noise_samples, onevision_processor
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.benchmark.costs import decoder_shape
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.resources import studies_folder
from vflowopt_search.strategy import Strategy

TRIED = ["--tiny", "--device", "cpu", "--dtype", "float32", "--samples", "2"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    path = tmp_path_factory.mktemp("studies") / "full_size.csv"
    main([*TRIED, "--repeats", "1", "--trial-repeats", "1", "--out", str(path)])
    return list(csv.DictReader(path.read_text().splitlines()))


def test_both_sides_of_every_strategy_have_a_row(rows: list[dict[str, str]]) -> None:
    names = [f"{kind} {budget}" for budget in BUDGETS for kind in ("published", "attention")]
    assert [(row["beside"], row["side"]) for row in rows] == [
        (name, side) for name in names for side in ("unpruned", "pruned")
    ]
    for row in rows:
        assert row["commit"] and row["device"] == "cpu" and row["torch"] == torch.__version__
        assert (row["dtype"], row["kernels"]) == ("float32", "no GPU")
        assert (row["image"], row["tiles"], row["visual_tokens"]) == ("170 x 131", "31", "156")
        assert float(row["first_token_s"]) > float(row["decoder_s"]) > 0


def test_cache_and_retention_are_those_of_the_budget(rows: list[dict[str, str]]) -> None:
    # keys and values of 28 layers, 2 heads of 8 features, 4 bytes each
    of_token = 2 * 28 * 2 * 8 * 4
    for row in rows:
        visual, text = int(row["visual_tokens"]), int(row["text_tokens"])
        alive = visual * float(row["retained"])
        assert int(row["kv_bytes"]) == pytest.approx(of_token * (alive + text))
        if row["side"] == "pruned":
            assert float(row["retained"]) == pytest.approx(float(row["beside"][-4:]), abs=0.05)


def test_only_pruned_sides_have_ratios_and_trials(rows: list[dict[str, str]]) -> None:
    for row in rows:
        only = ("decoder_ratio", "decoder_allowed", "share", "trials_per_hour", "paid_once_s")
        assert [row[name] != "" for name in only] == [row["side"] == "pruned"] * 5
        if row["side"] == "pruned":
            per_hour = 3600 / float(row["trial_s"])
            assert float(row["trials_per_hour"]) == pytest.approx(per_hour)
            assert row["samples"] == "2"


def test_a_full_trial_is_timed_after_what_is_paid_once() -> None:
    calls: list[tuple[str, int]] = []

    class Counting:
        num_samples = 3

        def measure(self, strategy: Any, samples: range) -> None:
            calls.append((strategy, len(samples)))

    objective: Any = Counting()
    strategies: Any = ["one", "other"]
    spreads, first = trial_seconds(objective, strategies, 2)
    assert calls == [("one", 3), ("other", 3)] * 3
    assert len(spreads) == 2 and first >= 0


def test_what_did_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(tiny(), 1, device="cpu", dtype="float32")

    def no_room(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("vflowopt_search.benchmark.rows.peak_while", no_room)
    strategy = strategies_on(subject, published_for_it=False)["published 0.10"]
    rows = list(speed_rows(subject, "published 0.10", strategy, tiny().image, 1))
    assert [row.note for row in rows] == ["out of memory: unpruned and pruned"] * 2
    assert all(row.first_token_s is None and row.share is None for row in rows)
    assert str(rows[0]).endswith("out of memory: unpruned and pruned")


def test_the_full_size_is_that_of_the_published_strategies() -> None:
    maker: Any = AutoModelForImageTextToText
    with torch.device("meta"):
        model = maker.from_config(full().config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(8.03, abs=0.01)
    shape = decoder_shape(adapter_for(model))
    assert shape is not None and (shape.num_heads, shape.num_kv_heads) == (28, 4)
    for budget in BUDGETS:
        path = studies_folder() / "published" / f"llava-onevision-7b-{budget}.json"
        Strategy.load(path).check_fits(identity_of(model))


def test_an_image_takes_about_as_many_tokens_as_a_base_and_nine_tiles() -> None:
    shape = full()
    [sample] = noise_samples(1, shape.image).samples
    inputs = encode(onevision_processor(shape.config), [sample])
    assert inputs["pixel_values"].shape == (1, 31, 3, 384, 384)
    visual = int((inputs["input_ids"] == shape.config.image_token_id).sum())
    assert visual == pytest.approx(10 * 27 * 27, rel=0.01)
