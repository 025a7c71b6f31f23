"""The benchmark counts what is there, times both sides in alternation, and refuses a no-op."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pruning.oracle import strategy_of
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.benchmark import rows
from vflowopt_search.benchmark.costs import cache_bytes, decoder_shape
from vflowopt_search.benchmark.memory import peak_while
from vflowopt_search.benchmark.plan import Plan
from vflowopt_search.benchmark.prompts import SEED, by_processor, noise_image
from vflowopt_search.benchmark.records import Benchmark, Row, Spread
from vflowopt_search.benchmark.run import benchmark
from vflowopt_search.benchmark.timing import Answer, timed_answer
from vflowopt_search.budget import kv_bytes, prefill_flops, tokens_per_layer
from vflowopt_search.cli.bench_table import lines
from vflowopt_search.errors import BenchmarkError
from vflowopt_search.strategy import Strategy

STRATEGY = strategy_of((0, 0.4), (3, 0.5))
PLAN = Plan(batch_sizes=(1, 3), resolutions=((56, 56), (40, 80)), new_tokens=3, repeats=3)
CPU = torch.device("cpu")
ON_A_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def measured(strategy: Strategy = STRATEGY, plan: Plan = PLAN, **options: Any) -> Benchmark:
    model = tiny_model("llava_onevision")
    prompts = by_processor(adapter_for(model), tiny_processor("llava_onevision"))
    return benchmark(model, strategy, prompts, plan, **options)


@pytest.fixture(scope="module")
def found() -> Benchmark:
    return measured(name="tiny")


def test_there_is_a_row_for_every_batch_and_resolution(found: Benchmark) -> None:
    kinds = [(row.batch_size, row.width, row.height) for row in found.rows]
    assert kinds == [(1, 56, 56), (3, 56, 56), (1, 40, 80), (3, 40, 80)]
    assert found.strategy_sha256 == STRATEGY.content_sha256()
    assert found.model == "tiny" and found.model_type == "llava_onevision"
    assert (found.new_tokens, found.repeats, found.dtype) == (3, 3, "float32")
    assert (found.kinds, found.seed) == (4, SEED)


def test_cache_and_flops_are_exactly_those_of_the_plan(found: Benchmark) -> None:
    shape = decoder_shape(adapter_for(tiny_model("llava_onevision")))
    assert shape is not None
    for row in found.rows:
        whole = [row.visual_tokens] * shape.decoder_layers
        kept = tokens_per_layer(STRATEGY.stages, row.visual_tokens, shape.decoder_layers)
        for side, alive in ((row.unpruned, whole), (row.pruned, kept)):
            assert side is not None
            assert list(side.visual_per_layer) == alive
            planned = kv_bytes(shape, alive, row.text_tokens, bytes_per_value=4)
            assert side.kv_bytes == row.batch_size * planned
            flops = prefill_flops(shape, alive, row.text_tokens)
            assert side.prefill_flops == row.batch_size * flops
        assert row.retained == pytest.approx(sum(kept) / sum(whole))
        assert row.possible_speed_up == prefill_flops(
            shape, whole, row.text_tokens
        ) / prefill_flops(shape, kept, row.text_tokens)
        assert row.share_reached is not None and row.decoder_speed_up is not None
        assert row.share_reached == row.decoder_speed_up.median / row.possible_speed_up
        assert row.note is None and row.scoring_s is not None


def test_what_takes_time_adds_up(found: Benchmark) -> None:
    for row in found.rows:
        for side in (row.unpruned, row.pruned):
            assert side is not None
            assert side.encoding_s.median + side.decoder_s.median <= side.end_to_end_s.high
            assert side.first_token_s.median < side.end_to_end_s.median
            assert side.decode_tokens_per_s.median > 0


def test_a_file_comes_back_as_it_was(found: Benchmark, tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    found.save(path)
    assert Benchmark.load(path) == found
    assert '"format": "vflowopt-benchmark/1"' in path.read_text()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ('{"format": "vflowopt-benchmark/2"}', "'vflowopt-benchmark/2' but this version reads"),
        ('{"format": "vflowopt-benchmark/1"}', "`strategy` is missing; add it"),
        ("[]", "has format None"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(BenchmarkError, match=sentence):
        Benchmark.load(tmp_path / "bench.json")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        Benchmark.load(tmp_path / "none.json")
    with pytest.raises(BenchmarkError, match="cannot be written"):
        measured_nothing().save(tmp_path / "no folder" / "bench.json")


def measured_nothing() -> Benchmark:
    text = dict.fromkeys(("strategy", "model", "model_type", "prompt", "device"), "")
    more = {"dtype": "", "attention": "", "created": "", "versions": {}, "rows": ()}
    counts = dict.fromkeys(("threads", "weight_bytes", "new_tokens", "repeats"), 0)
    return Benchmark(**text, **more, **counts, random_weights=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("stages", [((0, 1.0),), ((0, 1.0), (3, 1.0)), ((3, 0.999),)])
def test_a_strategy_that_removes_nothing_is_no_speed_up(stages: Any) -> None:
    with pytest.raises(BenchmarkError, match="removed no visual token, so that there is no speed"):
        measured(strategy_of(*stages), Plan(resolutions=((28, 28),), new_tokens=2, repeats=1))


def test_where_only_some_prompts_lose_tokens_the_others_say_so() -> None:
    strategy = strategy_of((0, 0.99))  # removes none of 36 tokens, and one of 88
    plan = Plan(resolutions=((56, 56), (28, 28)), new_tokens=2, repeats=1)
    large, small = measured(strategy, plan).rows
    assert large.note is None and large.end_to_end_speed_up is not None
    assert small.note is not None and "removed no visual token" in small.note
    assert small.unpruned is None and small.pruned is None and small.end_to_end_speed_up is None
    assert small.retained == 1.0


def test_sides_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []

    def answer(adapter: Any, inputs: Any, new_tokens: int) -> Answer:
        taken = timed_answer(adapter, inputs, new_tokens)
        order.append(taken.kv_bytes)
        return taken

    monkeypatch.setattr(rows, "timed_answer", answer)
    steps: list[tuple[int, int]] = []
    plan = Plan(resolutions=((56, 56),), new_tokens=2, repeats=4)
    measured(plan=plan, progress=lambda done, total: steps.append((done, total)))
    whole = max(order)
    names = "".join("w" if size == whole else "p" for size in order)
    assert names == "pw" + "pw" + "wp" + "pw" + "wp"
    assert steps == [(n, 10) for n in range(1, 11)]


@pytest.mark.parametrize("meets", [1, 2, 3], ids=["warm-up", "first", "second"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), RuntimeError(ON_A_CPU)])
def test_a_side_without_room_is_said(
    error: RuntimeError, meets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large: list[int] = []

    def answer(adapter: Any, inputs: Any, new_tokens: int) -> Answer:
        taken = timed_answer(adapter, inputs, new_tokens)
        if taken.kv_bytes > 50_000:
            large.append(taken.kv_bytes)
            if len(large) == meets:
                raise error
        return taken

    monkeypatch.setattr(rows, "timed_answer", answer)
    plan = Plan(resolutions=((56, 56),), new_tokens=2, repeats=2)
    steps: list[tuple[int, int]] = []
    found = measured(
        strategy_of((0, 0.3)), plan, progress=lambda done, total: steps.append((done, total))
    )
    (row,) = found.rows
    assert len(large) == meets and steps[-1] == (6, 6)
    assert row.note == "out of memory: unpruned"
    cells = lines(row)
    assert all(line[1] == "" and line[3] == "" for line in cells)
    assert all(line[2] for line in cells)
    assert row.unpruned is None and row.pruned is not None and row.end_to_end_speed_up is None


def test_what_is_no_lack_of_room_is_not_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(adapter: Any, inputs: Any, new_tokens: int) -> Answer:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(rows, "timed_answer", answer)
    with pytest.raises(RuntimeError, match="shapes differ"):
        measured()


def test_a_cache_that_did_not_shrink_is_no_speed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(adapter: Any, inputs: Any, new_tokens: int) -> Answer:
        return replace(timed_answer(adapter, inputs, new_tokens), kv_bytes=100)

    monkeypatch.setattr(rows, "timed_answer", answer)
    with pytest.raises(BenchmarkError, match="left the KV cache as large as that of the"):
        measured(plan=Plan(resolutions=((56, 56),), new_tokens=2, repeats=1))


def test_every_row_is_handed_on_once_it_is_measured() -> None:
    told: list[Benchmark] = []
    plan = Plan(batch_sizes=(1, 2), resolutions=((28, 28), (56, 56)), new_tokens=2, repeats=1)
    found = measured(strategy_of((0, 0.99)), plan, on_row=told.append)
    # nothing is removed of 36 tokens, so that nothing is worth keeping before the third row
    assert [len(one.rows) for one in told] == [3, 4]
    assert told[-1] == found and told[0].rows == found.rows[:3] and told[0].kinds == 4


def test_the_hardware_is_named(found: Benchmark) -> None:
    assert found.device.startswith("cpu (") and found.device != "cpu ()"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert found.device.removeprefix("cpu (").removesuffix(")") in cpuinfo.read_text()


def test_an_answer_is_as_long_as_asked_and_its_parts_add_up() -> None:
    model = tiny_model("llava")
    adapter = adapter_for(model)
    inputs = by_processor(adapter, tiny_processor("llava")).batch(2, (30, 30))
    answer = timed_answer(adapter, inputs, 5)
    assert len(answer.steps) == 4
    assert answer.first_token + sum(answer.steps) <= answer.whole
    assert all(part > 0 for part in (answer.encoding, answer.decoder, *answer.steps))
    assert not adapter.backbone._forward_hooks


def test_cache_bytes_are_those_allocated() -> None:
    model: Any = tiny_model("llava")
    inputs = by_processor(adapter_for(model), tiny_processor("llava")).batch(2, (28, 28))
    cache = model(**inputs).past_key_values
    whole = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(cache) == whole
    cache.crop(-3)  # views of what is allocated still
    assert cache_bytes(cache) == whole


def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    size = 200_000_000

    def much() -> None:
        torch.ones(size, dtype=torch.uint8)

    little, more = peak_while(lambda: None, CPU), peak_while(much, CPU)
    if little is None or more is None:
        pytest.skip("peak memory cannot be measured here")
    assert 0.9 * size <= more - little <= 1.2 * size
    again = peak_while(lambda: None, CPU)
    assert again is not None and again < more - 0.8 * size


def test_a_given_picture_takes_every_resolution() -> None:
    model = tiny_model("llava_onevision")
    picture = noise_image((28, 28), 0)
    prompts = by_processor(
        adapter_for(model), tiny_processor("llava_onevision"), image=picture, question="how many"
    )
    assert prompts.origin == "the image given and 'how many' through LlavaOnevisionProcessor"
    assert prompts.batch(1, (56, 28))["image_sizes"].tolist() == [[28, 56]]


@pytest.mark.parametrize(
    "wrong", [{"new_tokens": 1}, {"repeats": 0}, {"batch_sizes": (0,)}, {"batch_sizes": ()}]
)
def test_a_plan_that_measures_nothing_is_refused(wrong: Any) -> None:
    with pytest.raises(BenchmarkError, match="give at least 2 tokens"):
        Plan(**wrong)
    with pytest.raises(BenchmarkError, match="at least 1 pixel"):
        Plan(resolutions=((0, 5),))


@given(st.lists(st.floats(0.001, 1000), min_size=1))
def test_a_spread_is_in_order_and_within(values: list[float]) -> None:
    spread = Spread.of(values)
    assert min(values) <= spread.low <= spread.median <= spread.high <= max(values)
    assert Spread.of(values[::-1]) == spread


def test_every_field_of_a_row_is_documented() -> None:
    for part in (Benchmark, Row, Spread):
        assert all(field.description for field in part.model_fields.values())
