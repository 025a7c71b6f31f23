from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.ops.test_dispatch import OPS
from vflowopt_search.ops.bench import eager
from vflowopt_search.ops.bench.__main__ import NO_GPU, main
from vflowopt_search.ops.bench.cases import SMALL, Case, Sizes, cases
from vflowopt_search.ops.bench.rows import Setup, append, row
from vflowopt_search.ops.bench.timing import Times, times

CPU = torch.device("cpu")
CASES = cases(SMALL, CPU)
COPYING = Case("merge_tokens", "8 x 2", (), 4e6, "copy")
MULTIPLYING = Case("attention_received", "8 tokens", (), 3e9, "attention")


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_eager_way_gives_the_same_answer(number: int) -> None:
    case = CASES[number]()
    expected = getattr(OPS[case.op], case.op)(*case.arguments)
    answer = getattr(eager, case.op)(*case.arguments)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-6)


def test_every_op_is_measured() -> None:
    assert {make().op for make in CASES} == set(OPS)


def test_sizes_are_those_of_onevision() -> None:
    assert (Sizes().tile, Sizes().tokens, Sizes().pixels, Sizes().long) == (729, 7290, 196, 16384)


def test_without_a_gpu_it_says_so_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == NO_GPU
    assert "\n" not in NO_GPU


def test_on_a_cpu_it_tries_every_definition_and_keeps_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--cpu"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == len(CASES)
    assert all(": definition" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_what_was_moved_by_the_time_it_took() -> None:
    one = row(COPYING, "kernel", Times(1.0, 2.0, 4.0, 5.0), bound_ms=1.5, copy_gb_s=8.0)
    assert (one.rate, one.unit, one.share, one.share_of_card) == (2.0, "GB/s", 0.75, 0.25)
    two = row(MULTIPLYING, "kernel", Times(1.0, 1.5, 4.0, 5.0), bound_ms=0.75, copy_gb_s=8.0)
    assert (two.rate, two.unit, two.share, two.share_of_card) == (2.0, "TFLOP/s", 0.5, None)


def test_what_does_not_fit_is_said_and_has_no_time() -> None:
    one = row(COPYING, "eager", None, bound_ms=1.5, copy_gb_s=8.0)
    assert str(one).endswith("out of memory")
    assert one.p50 is None and one.rate is None and one.share is None


def test_rows_are_added_below_one_heading(tmp_path: Path) -> None:
    path = tmp_path / "studies" / "kernels.csv"
    setup = Setup("now", "abc", "a GPU", "2", "3", "4")
    one = row(COPYING, "kernel", Times(1.0, 2.0, 4.0, 5.0), bound_ms=1.5, copy_gb_s=8.0)
    append(path, setup, [one])
    append(path, setup, [one, one])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 3
    assert rows[2]["device"] == "a GPU" and rows[2]["commit"] == "abc" and rows[2]["p50"] == "2.0"


def test_half_of_the_repetitions_are_below_the_median() -> None:
    calls: list[int] = []
    taken = times(lambda: calls.append(0), CPU, repetitions=5)
    assert len(calls) == 6  # the first is not timed
    assert 0 <= taken.p20 <= taken.p50 <= taken.p80
