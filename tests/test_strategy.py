"""The strategy file: what it says comes back exactly, and nothing else is accepted."""

from __future__ import annotations

import copy
import json
import stat
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import MODEL, full_strategy
from tests.test_strategy_refusals import part_with, stage_with
from vflowopt_search import strategy as strategy_module
from vflowopt_search.errors import StrategyError
from vflowopt_search.strategy import (
    Budget,
    Objective,
    Provenance,
    Stage,
    Strategy,
)

RATIO = st.floats(min_value=0, max_value=1, exclude_min=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(min_size=1, max_size=20)


def test_the_package_offers_the_strategy() -> None:
    import vflowopt_search

    assert vflowopt_search.Strategy is Strategy


def test_a_saved_strategy_loads_equal(tmp_path: Path) -> None:
    full_strategy().save(tmp_path / "strategy.json")
    assert Strategy.load(tmp_path / "strategy.json") == full_strategy()


@given(TEXT, st.lists(RATIO, min_size=1, max_size=8), FINITE, RATIO)
def test_every_float_and_text_comes_back_exactly(
    name: str, ratios: list[float], divergence: float, retained: float
) -> None:
    strategy = Strategy(
        name=name,
        stages=tuple(Stage(layer=k, keep_ratio=r) for k, r in enumerate(ratios)),
        budget=Budget(mean_retained=retained),
        provenance=Provenance(objective=Objective(divergence=divergence, metric="kl")),
    )
    again = Strategy.loads(strategy.to_json())
    assert again == strategy
    assert [stage.keep_ratio.hex() for stage in again.stages] == [r.hex() for r in ratios]


def test_a_strategy_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        full_strategy().name = "other"  # type: ignore[misc]


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), st.lists))
def test_whatever_stands_in_a_field_gives_a_strategy_or_a_strategy_error(value: object) -> None:
    for key in json.loads(full_strategy().to_json()):
        content = {**json.loads(full_strategy().to_json()), key: value}
        try:
            Strategy.loads(json.dumps(content))
        except StrategyError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "other"), ("decoder_layers", 9), ("vision_layers", 7), ("hidden_size", 64)],
)
def test_another_model_is_refused_by_the_field_that_differs(field: str, value: object) -> None:
    other = MODEL.model_copy(update={field: value})
    with pytest.raises(StrategyError, match=rf"'full' is for .* {field} .* has {value!r}; search"):
        full_strategy().check_fits(other)


def test_names_and_fingerprints_of_models_are_not_compared() -> None:
    same = MODEL.model_copy(update={"name": "fine-tuned", "revision": "x", "config_sha256": "0"})
    full_strategy().check_fits(same)
    with pytest.raises(StrategyError, match="for a model with hidden_size"):
        full_strategy().check_fits(same.model_copy(update={"hidden_size": 64}))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ({"decoder_layers": 3}, r"stages\[1\]\.layer is 3 but the model has 3 decoder layers"),
        ({"vision_layers": 4}, r"importance\.vision_layer is 4 but the model has 4 vision"),
    ],
)
def test_a_strategy_without_a_model_must_stay_within_the_layers(
    layers: dict[str, int], sentence: str
) -> None:
    unbound = full_strategy().model_copy(update={"model": None})
    unbound.check_fits(MODEL)
    with pytest.raises(StrategyError, match=f"'full' does not fit: {sentence}.*; search again"):
        unbound.check_fits(MODEL.model_copy(update=layers))


def test_a_missing_file_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StrategyError, match=r"no\.json cannot be read \(No such file.*\); check"):
        Strategy.load(tmp_path / "no.json")
    with pytest.raises(StrategyError, match=r"s\.json cannot be written \(No such file.*; choose"):
        full_strategy().save(tmp_path / "no" / "s.json")
    (tmp_path / "picture.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StrategyError, match=r"picture\.json is not UTF-8 text; is it a strategy"):
        Strategy.load(tmp_path / "picture.json")


def test_a_failed_save_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "strategy.json"
    file.write_text("old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StrategyError, match=r"cannot be written \(No space left on device\)"):
        full_strategy().save(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_saving_replaces_the_file_at_once_and_others_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "strategy.json"
    file.write_text("old")
    with file.open() as reader:
        full_strategy().save(file)
        assert reader.read() == "old"  # the old file was never written into
    assert list(tmp_path.iterdir()) == [file]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_the_committed_schema_is_the_schema() -> None:
    committed = Path(strategy_module.__file__).with_name("strategy.schema.json")
    expected = json.dumps(Strategy.json_schema(), indent=2) + "\n"
    assert committed.read_text(encoding="utf-8") == expected, "write Strategy.json_schema() there"


def test_the_schema_accepts_what_we_write_and_refuses_what_we_refuse() -> None:
    schema = Strategy.json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    content = json.loads(full_strategy().to_json())
    validator.validate(content)
    for spoil in (stage_with(keep_ratio=1.5), stage_with(keep=1), part_with("recycling", cell=0)):
        wrong = copy.deepcopy(content)
        spoil(wrong)
        assert not validator.is_valid(wrong)
