"""A model that no family serves: pruned by its structure once it passed, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from tests.acme import acme_model
from tests.contract.oracle import generate, masked_logits
from tests.families import tiny
from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import text_sizes
from tests.trials import Told
from vflowopt_search.adapters.generic import GenericAdapter
from vflowopt_search.adapters.registry import adapter_for, identity_of
from vflowopt_search.calibration.samples import CalibrationSet, Sample, fingerprint
from vflowopt_search.deploy import pruned
from vflowopt_search.errors import ModelError, SearchSpaceError, UnsupportedError
from vflowopt_search.objective import build_objective
from vflowopt_search.resources import search_spaces_folder
from vflowopt_search.search_space import SearchSpace
from vflowopt_search.selfcheck.inputs import Prompts, make_prompts, noise_image
from vflowopt_search.strategy import Importance, PixelScale, Recycling, Strategy


@pytest.fixture(scope="module")
def model() -> Any:
    return acme_model()


def scored(score: str, *stages: tuple[int, float], **changed: Any) -> Strategy:
    return strategy_of(*stages, importance=Importance(score=score), **changed)


@pytest.mark.parametrize(
    ("score", "stages"),
    [("random", ((0, 0.4), (3, 0.5))), ("uniform", ((0, 0.5),)), ("text_attention", ((2, 0.3),))],
)
def test_a_copy_of_llava_is_pruned_as_masking_says(
    model: Any, score: str, stages: tuple[tuple[int, float], ...]
) -> None:
    inputs, strategy = ragged_inputs("llava"), scored(score, *stages)
    with pruned(model, strategy) as applied:
        steps = generate(model, inputs)
    assert applied.last is not None
    kept = round(16 * stages[0][1])
    assert applied.last.tokens_per_layer[0][stages[0][0]] == kept
    masked = masked_logits(tiny("llava"), model, inputs, steps.ids, applied.last, strategy)
    assert (steps.logits - masked).abs().max() < 5e-5


def test_what_it_is_said_to_be(model: Any) -> None:
    adapter = adapter_for(model)
    assert isinstance(adapter, GenericAdapter)
    identity = identity_of(model)
    assert (identity.model_type, identity.vision_layers) == ("acme_vlm", 0)
    assert identity.decoder_layers == 6


@pytest.mark.parametrize(
    ("strategy", "sentence"),
    [
        (scored("received_attention", (0, 0.5)), "scores by received_attention.*text_attention"),
        (scored("random", (0, 0.5), recycling=Recycling(cell=2.0)), "recycles tokens by grid cell"),
        (
            strategy_of(
                (0, 0.5),
                importance=Importance(
                    score="random", entropy_weight=0.5, pixels=PixelScale(mean=(0.0,), std=(1.0,))
                ),
            ),
            "weighs the entropy of patches",
        ),
        (scored("random", (0, 0.5), positions="packed"), "positions 'packed'.*offer original"),
    ],
)
def test_what_needs_a_grid_is_refused(model: Any, strategy: Strategy, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence), pruned(model, strategy):
        pass


def test_the_check_runs_once_per_model(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(adapter: Any, source: Any) -> Prompts:
        made.append(adapter.model_type)
        return make_prompts(adapter, source)

    monkeypatch.setattr("vflowopt_search.selfcheck.check.make_prompts", counted)
    model = acme_model()
    for _ in range(3):
        with pruned(model, scored("random", (0, 0.5))):
            pass
    assert made == ["acme_vlm"]


def test_a_model_that_fails_is_refused_with_check_and_figure() -> None:
    model = acme_model()
    layer = model.model.language_model.layers[3]
    # a layer that counts its tokens says another thing when some are gone
    layer.register_forward_hook(lambda module, args, out: out * (1 + out.shape[1] / 10))
    sentence = r"acme_vlm model fails the self-check '.*': [\d.e-]+, where at most"
    with pytest.raises(UnsupportedError, match=sentence), pruned(model, scored("random", (0, 0.5))):
        pass


@pytest.mark.parametrize(
    ("break_it", "missing"),
    [
        (lambda m: delattr(m.model.language_model, "rotary_emb"), "no decoder, with a list of"),
        (lambda m: setattr(m.config, "image_token_id", None), "has no image_token_id or"),
    ],
)
def test_another_structure_is_refused_by_name(break_it: Any, missing: str) -> None:
    model = acme_model()
    break_it(model)
    with pytest.raises(ModelError, match=rf"model_type 'acme_vlm' \(AcmeVLM\).*{missing}"):
        adapter_for(model)


def test_no_image_encoder_is_refused_by_name() -> None:
    plain = LlamaModel(LlamaConfig(**text_sizes()))
    with pytest.raises(
        ModelError, match=r"no adapter serves.*no part of it has get_image_features"
    ):
        adapter_for(plain)
    with pytest.raises(ModelError, match=r"no adapter serves.*it has no configuration"):
        adapter_for(nn.Linear(1, 1))


def written_with_score(folder: Path, score: str) -> Path:
    """The shipped space, but for another score."""
    shipped = (search_spaces_folder() / "vflowopt.yaml").read_text()
    path = folder / "mine.yaml"
    path.write_text(shipped.replace("score: received_attention", f"score: {score}"))
    return path


def test_the_objective_measures_it_and_reads_its_cache(model: Any, tmp_path: Path) -> None:
    samples = tuple(
        Sample(str(i), f"how many objects {i}", (noise_image(),) * (i % 2 + 1)) for i in range(3)
    )
    calibration = CalibrationSet("noise", samples, fingerprint(samples))
    processor = tiny("llava").processor
    assert processor is not None
    values = []
    for _ in range(2):
        objective = build_objective(model, processor(), calibration, cache=tmp_path)
        values.append(objective.measure(scored("text_attention", (1, 0.5)), [0, 1, 2]))
    assert values[0] == values[1]
    assert all(value > 0 for value in values[0])
    with pytest.raises(SearchSpaceError, match="scores by received_attention, which acme_vlm"):
        SearchSpace.load("vflowopt").bind(objective.facts)
    space = SearchSpace.load(written_with_score(tmp_path, "uniform"))
    bound = space.bind(objective.facts)
    assert {"recycling", "positions", "entropy_weight"}.isdisjoint(bound.searched())
    assert "recycling is fixed at false: where tokens lie is not known" in bound.notes
    depths = {"num_stages": 2, "stage2_depth": 0.5, "stage2_keep": 0.5}
    trial = Told({**depths, "context_threshold": 0.0, "separators": "drop"})
    assert objective.measure(bound.suggest(trial, 0.5), [0])[0] > 0


def test_tokens_are_counted_on_the_features(model: Any) -> None:
    adapter = adapter_for(model)
    [first, second] = adapter.images({"pixel_values": torch.zeros(2, 3, 28, 28)})
    assert len(first.grid) == len(second.grid) == 16
