"""Accuracy kept: right answers counted on the same samples, pruned and unpruned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pruning.oracle import strategy_of
from tests.small_set import small_set
from tests.tiny import tiny_model, tiny_processor
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import CalibrationError, EvaluationError, ModelError
from vflowopt_search.evaluate import answers as asking_module
from vflowopt_search.evaluate import queue
from vflowopt_search.evaluate.answers import Asking, ask
from vflowopt_search.evaluate.evaluation import (
    Evaluation,
    check_labels,
    content_of_file,
    evaluate,
    write_plain,
)
from vflowopt_search.evaluate.ledger import Ledger
from vflowopt_search.evaluate.queue import Answer
from vflowopt_search.strategy import Strategy

PRUNED = strategy_of((0, 0.4), (3, 0.5))


def asking_of(family: str = "llava", **options: Any) -> Asking:
    return Asking(tiny_model(family), tiny_processor(family), max_new_tokens=8, **options)


def answered(**strategies: Strategy | None) -> Mapping[str, Sequence[Answer]]:
    return ask(asking_of(), small_set().samples, strategies, Ledger()).answers


def test_answers_are_those_of_generate() -> None:
    asking = asking_of("llava_onevision", batch_size=3)
    model: Any = asking.model
    samples = small_set().samples
    found = ask(asking, samples, {"unpruned": None, "pruned": PRUNED}, Ledger()).answers
    for name, strategy in (("unpruned", strategy_of((0, 1.0))), ("pruned", PRUNED)):
        inputs = encode(asking.processor, samples)
        with pruned(model, strategy) as applied:
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        last = applied.last
        assert last is not None
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = asking.processor.batch_decode(new, skip_special_tokens=True)
        assert [answer.text for answer in found[name]] == [text.strip() for text in texts]
        pairs = zip(last.tokens_per_layer, last.visual_tokens, strict=True)
        shares = [sum(alive) / len(alive) / total for alive, total in pairs]
        assert [answer.retained for answer in found[name]] == pytest.approx(shares)
    assert [a.text for a in found["unpruned"]] != [a.text for a in found["pruned"]]
    assert all(answer.seconds > 0 for each in found.values() for answer in each)


def labelled(right: int) -> tuple[Sample, ...]:
    """Samples of which the unpruned model answers the first few right."""
    samples = small_set().samples
    answers = answered(whole=None)["whole"]
    return tuple(
        replace(sample, answer=answer.text.upper() if i < right else "something else")
        for i, (sample, answer) in enumerate(zip(samples, answers, strict=True))
    )


def test_accuracy_is_counted_by_group() -> None:
    seen: list[tuple[int, int]] = []
    result = evaluate(
        asking_of(),
        labelled(right=4),
        {"all": strategy_of((0, 1.0)), "some": PRUNED},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (result.samples, result.images) == (7, 7)
    assert result.unpruned == pytest.approx(4 / 7)
    everything, some = result.results
    assert everything.accuracy == result.unpruned
    assert everything.kept is not None
    assert (everything.kept.low, everything.kept.high) == (1, 1)
    assert (everything.agreement, everything.retained, everything.test.p_value) == (1, 1, 1)
    assert {g.name: (g.samples, g.unpruned, g.accuracy) for g in everything.groups} == {
        "even": (4, 2 / 4, 2 / 4),
        "odd": (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
    }
    assert everything.worst_group is None  # seven samples are few
    assert some.agreement < 1
    assert some.retained is not None and 0.2 < some.retained < 0.5
    assert some.speed is not None and some.speed > 0
    assert seen[-1] == (21, 21)


def test_samples_that_share_one_of_their_images_are_no_independent_evidence() -> None:
    """Each shows the first image beside its own."""
    one = small_set().samples[0].images
    samples = [replace(sample, images=(*one, *sample.images)) for sample in labelled(right=4)]
    result = evaluate(asking_of(), samples, {"all": strategy_of((0, 1.0))})
    assert (result.samples, result.images) == (7, 1)
    assert result.results[0].test.name == "sign flips"


def test_the_worst_group_keeps_least() -> None:
    samples = [
        replace(sample, id=f"{n} {sample.id}", answer=answer.text, group=group)
        for group, chosen in (("whole", None), ("pruned", PRUNED))
        for n in range(2)
        for sample, answer in zip(small_set().samples, answered(it=chosen)["it"], strict=True)
    ]
    [result] = evaluate(asking_of(), samples, {"pruned": PRUNED}).results
    by_name = {group.name: group for group in result.groups}
    kept = by_name["whole"].kept
    assert result.worst_group == "whole"
    assert kept is not None and kept.value < 1


def test_several_right_answers_and_graded_scores() -> None:
    samples = [replace(s, answers=("x", s.answer or "", "y", "z")) for s in labelled(right=7)]
    result = evaluate(asking_of(), samples, {"pruned": PRUNED}, metric="vqa_accuracy")
    # one of four said it: a third in the three subsets that hold it
    assert result.unpruned == pytest.approx(3 / 4 * 1 / 3)
    assert result.results[0].test.name == "sign flips"


def test_a_second_time_only_what_is_missing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, path = labelled(right=4), tmp_path / "answers.jsonl"
    asking = asking_of(batch_size=2)
    generated: list[int] = []

    def counted(asking: Asking, source: Any, strategy: Any, rows: Any) -> list[Answer]:
        generated.append(len(rows))
        return answer(asking, source, strategy, rows)

    answer = asking_module._answer
    monkeypatch.setattr(asking_module, "_answer", counted)
    first = evaluate(asking, samples[:5], {"pruned": PRUNED}, ledger=Ledger(path))
    assert sum(generated) == 10
    generated.clear()
    again = evaluate(asking, samples, {"renamed": PRUNED}, ledger=Ledger(path))
    assert sum(generated) == 4
    generated.clear()
    renamed = replace_names(again, "pruned")
    repeated = evaluate(asking, samples, {"pruned": PRUNED}, ledger=Ledger(path))
    assert generated == []
    assert repeated.to_plain() == renamed
    # another metric scores the same answers; another strategy, length or sample does not know them
    evaluate(asking, samples, {"pruned": PRUNED}, metric="anls", ledger=Ledger(path))
    assert generated == []
    evaluate(asking, samples, {"other": strategy_of((0, 0.5))}, ledger=Ledger(path))
    assert sum(generated) == 7
    evaluate(
        replace(asking, max_new_tokens=2), samples[:1], {"pruned": PRUNED}, ledger=Ledger(path)
    )
    assert sum(generated) == 9
    moved = [replace(samples[0], prompt="What color is the cat?")]
    evaluate(asking, moved, {"pruned": PRUNED}, ledger=Ledger(path))
    assert sum(generated) == 11
    assert first.samples == 5


def replace_names(evaluation: Evaluation, name: str) -> dict[str, Any]:
    plain = evaluation.to_plain()
    plain["strategies"] = [each | {"name": name} for each in plain["strategies"]]
    return plain


def test_other_weights_do_not_know_the_answers(tmp_path: Path) -> None:
    asking, samples, ledger = asking_of(), labelled(right=4)[:2], Ledger(tmp_path / "a.jsonl")
    model: Any = asking.model
    evaluate(asking, samples, {"pruned": PRUNED}, ledger=ledger)
    before = (tmp_path / "a.jsonl").read_text()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 0.5
    evaluate(asking, samples, {"pruned": PRUNED}, ledger=ledger)
    assert len((tmp_path / "a.jsonl").read_text()) > 1.9 * len(before)


def test_many_samples_are_encoded_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(asking_of(), labelled(right=4), {"pruned": PRUNED})
    monkeypatch.setattr(queue, "WINDOW", 3)
    parts = evaluate(asking_of(), labelled(right=4), {"pruned": PRUNED})
    for name in whole.answers:
        assert [a.text for a in whole.answers[name]] == [a.text for a in parts.answers[name]]


def test_samples_of_one_image_are_encoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    three = small_set(3).samples
    asked = [replace(s, id=f"{n} {s.id}", prompt=f"is {n} ?") for n in range(2) for s in three]
    windows: list[set[str]] = []

    def noted(asking: Asking, samples: list[Sample]) -> Any:
        windows.append({sample.id[-1] for sample in samples})
        return source(asking, samples)

    source = asking_module._source
    monkeypatch.setattr(asking_module, "_source", noted)
    monkeypatch.setattr(queue, "WINDOW", 2)
    answers = ask(asking_of(), asked, {"pruned": PRUNED}, Ledger()).answers["pruned"]
    assert windows == [{"0"}, {"1"}, {"2"}]
    whole = ask(asking_of(), asked[4:5], {"pruned": PRUNED}, Ledger()).answers["pruned"]
    assert answers[4].text == whole[0].text


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    asking = asking_of(batch_size=7)
    samples = small_set().samples
    expected = ask(asking, samples, {"pruned": PRUNED}, Ledger()).answers
    model: Any = asking.model
    limit = 2

    def small_gpu(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["inputs_embeds"]) > limit:
            raise torch.OutOfMemoryError("no room")

    hook = model.model.language_model.register_forward_pre_hook(small_gpu, with_kwargs=True)
    halved = ask(asking, samples, {"pruned": PRUNED}, Ledger()).answers
    assert [a.text for a in halved["pruned"]] == [a.text for a in expected["pruned"]]
    limit = 0
    with pytest.raises(ModelError, match="one sample does not fit in memory"):
        ask(asking, samples, {"pruned": PRUNED}, Ledger())
    hook.remove()


def test_samples_without_an_image_are_not_pruned() -> None:
    bare = [replace(sample, images=()) for sample in small_set().samples[:2]]
    answers = ask(asking_of(), bare, {"unpruned": None, "pruned": PRUNED}, Ledger()).answers
    assert [a.retained for a in answers["pruned"]] == [None, None]
    assert [a.text for a in answers["pruned"]] == [a.text for a in answers["unpruned"]]


def test_unlabelled_samples_are_refused() -> None:
    samples = [replace(sample, answer=None) for sample in small_set().samples]
    with pytest.raises(CalibrationError, match=r"no sample has an answer .* --columns answer=NAME"):
        evaluate(asking_of(), samples, {"pruned": PRUNED})
    with pytest.raises(CalibrationError, match="there are no samples to ask; give at least one"):
        evaluate(asking_of(), [], {"pruned": PRUNED})
    for nothing in (None, "", " "):
        some = [replace(samples[0], answer=nothing), *labelled(right=4)]
        with pytest.raises(CalibrationError, match=r"1 of 8 samples lack an answer .*first: 0"):
            check_labels(some, "exact_match")
    with pytest.raises(EvaluationError, match="no metric is called 'bleu'"):
        evaluate(asking_of(), labelled(right=4), {"pruned": PRUNED}, metric="bleu")


def test_a_label_that_is_no_option_is_refused() -> None:
    sample = replace(small_set().samples[0], answer="E", options=("a", "b"))
    with pytest.raises(EvaluationError, match=r"the answer 'E' of sample 0 is none of its options"):
        check_labels([sample], "multiple_choice")
    check_labels([replace(sample, answer="b")], "multiple_choice")


def test_the_file_is_json_without_the_answers(tmp_path: Path) -> None:
    evaluation = evaluate(asking_of(), labelled(right=4), {"pruned": PRUNED})
    path = tmp_path / "evaluation.json"
    write_plain(path, content_of_file(evaluation, {"model": {"name": "tiny"}}))
    stored = json.loads(path.read_text())
    assert stored["format"] == "vflowopt-evaluation/1"
    assert stored["model"] == {"name": "tiny"}
    assert stored["strategies"][0]["test"]["p_value"] == evaluation.results[0].test.p_value
    assert "answers" not in stored
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    with pytest.raises(EvaluationError, match="cannot be written"):
        write_plain(path / "deeper", {})
