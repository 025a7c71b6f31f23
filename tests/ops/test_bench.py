from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.test_dispatch import OPS
from vflowopt_search.ops import dispatch
from vflowopt_search.ops.bench import eager
from vflowopt_search.ops.bench.__main__ import NO_GPU, main, refuse_a_wrong_kernel
from vflowopt_search.ops.bench.cases import SMALL, Case, Sizes, cases
from vflowopt_search.ops.bench.rows import Setup, append, row
from vflowopt_search.ops.bench.timing import Ceilings, Times, product_rate, times

CPU = torch.device("cpu")
CASES = cases(SMALL, CPU)
COPYING = Case("merge_tokens", "8 x 2", (), 4e6, "copy")
MULTIPLYING = Case("attention_received", "8 tokens", (), 3e9, "attention", 3 * 2**20)
CARD = Ceilings(copy_gb_s=8.0, product_tflop_s=16.0)


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
    one = row(COPYING, "kernel", Times(1.0, 2.0, 4.0, 5.0), 1.5, CARD)
    assert (one.rate, one.unit, one.share, one.share_of_card) == (2.0, "GB/s", 0.75, 0.25)
    assert str(one).endswith("75% of a copy of as many bytes (25% of a large copy), 5 MiB")
    two = row(MULTIPLYING, "kernel", Times(1.0, 1.5, 4.0, 5.0), 0.75, CARD)
    assert (two.rate, two.unit, two.share, two.share_of_card) == (2.0, "TFLOP/s", 0.5, 0.125)
    assert "50% of fused attention (12% of a large product), 5 MiB" in str(two)


def test_beside_what_attention_took_stands_what_its_map_takes() -> None:
    taken = row(MULTIPLYING, "kernel", Times(1.0, 1.5, 4.0, 5.0), 0.75, CARD)
    full = row(MULTIPLYING, "eager", None, 0.75, CARD)
    for one in (taken, full):
        assert one.map_mib == 3.0
        assert str(one).endswith("; the whole map takes 3 MiB")


def test_the_whole_map_at_16384_tokens_takes_16_gib() -> None:
    sizes = Sizes(tiles=1, side=2, features=1, width=1)  # all else small
    made: list[Any] = cases(sizes, torch.device("meta"))
    [long] = [make for make in made if sizes.long in make.args]
    assert long().map_bytes == 16 * 2**30


def test_what_does_not_fit_is_said_and_has_no_time() -> None:
    one = row(COPYING, "eager", None, 1.5, CARD)
    assert str(one).endswith("out of memory")
    assert one.p50 is None and one.rate is None and one.share is None
    assert one.share_of_card is None


def test_a_large_product_is_counted_two_operations_per_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = Times(0.0, 2e-3, 0.0, 0.0)
    monkeypatch.setattr("vflowopt_search.ops.bench.timing.times", lambda *given: taken)
    assert product_rate(CPU, 100) == pytest.approx(2 * 100**3 / 2e-6 / 1e12)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_kernel_that_is_wrong_by_a_hundredth_is_refused(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[number]()
    refuse_a_wrong_kernel(case)
    right = getattr(OPS[case.op], case.op)

    def wrong(*arguments: Any) -> Any:
        answer = right(*arguments)
        if isinstance(answer, torch.Tensor):
            return answer * 1.01
        return answer._replace(hidden_BND=answer.hidden_BND * 1.01)

    monkeypatch.setattr(dispatch, case.op, wrong)
    with pytest.raises(AssertionError, match="not close"):
        refuse_a_wrong_kernel(case)


def test_at_16384_keys_a_kernel_that_is_wrong_by_a_hundredth_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    query_BHQD, key_BHND = torch.randn(1, 1, 2, 4), torch.zeros(1, 1, 16384, 4)
    case = Case("attention_received", "", (query_BHQD, key_BHND, 0.1), 1.0, "attention", 8 * 16384)
    right = dispatch.attention_received
    monkeypatch.setattr(dispatch, case.op, lambda *given: right(*given) * 1.01)
    with pytest.raises(AssertionError, match="not close"):
        refuse_a_wrong_kernel(case)


def test_rows_are_added_below_one_heading(tmp_path: Path) -> None:
    path = tmp_path / "studies" / "kernels.csv"
    setup = Setup("now", "abc", "a GPU", "2", "3", "4")
    one = row(COPYING, "kernel", Times(1.0, 2.0, 4.0, 5.0), 1.5, CARD)
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
