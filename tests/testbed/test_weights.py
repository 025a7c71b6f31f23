from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionForConditionalGeneration,
    ProcessorMixin,
)

from vflowopt_search import testbed
from vflowopt_search.errors import ModelError
from vflowopt_search.testbed.batches import any_resolution_tiles
from vflowopt_search.testbed.data import AskedScene, evaluation_scenes
from vflowopt_search.testbed.export import export_weights
from vflowopt_search.testbed.integrity import check_weights, file_sha256
from vflowopt_search.testbed.measure import (
    attention_keeper,
    blind_right,
    generated_right,
    prompt_of,
    pruned_right,
    random_keeper,
)
from vflowopt_search.testbed.model import make_model

Llava = LlavaOnevisionForConditionalGeneration


@pytest.fixture(scope="module")
def model() -> Llava:
    return testbed.load_model()


@pytest.fixture(scope="module")
def processor() -> ProcessorMixin:
    return testbed.load_processor()


@pytest.fixture(scope="module")
def scenes() -> list[AskedScene]:
    return list(evaluation_scenes(60, seed=77))


@pytest.fixture(scope="module")
def whole(model: Llava, processor: ProcessorMixin, scenes: list[AskedScene]) -> list[bool]:
    """Which questions the unpruned model answers exactly."""
    return generated_right(model, processor, scenes)


@pytest.fixture
def weights_copy(tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(testbed.WEIGHTS_FOLDER, tmp_path / "weights"))


def test_it_sees(whole: list[bool], scenes: list[AskedScene]) -> None:
    blind = blind_right([q for s in scenes for q in s.questions])
    assert len(whole) == 60
    assert sum(whole) >= 50
    assert sum(whole) > sum(blind) + 15


def test_it_needs_the_right_image(
    model: Llava, processor: ProcessorMixin, scenes: list[AskedScene]
) -> None:
    assert sum(generated_right(model, processor, scenes[:5], shift=1)) < 10


def test_keeping_every_token_is_the_whole_model(
    model: Llava, processor: ProcessorMixin, scenes: list[AskedScene], whole: list[bool]
) -> None:
    kept = pruned_right(model, processor, scenes[:5], 1.0, random_keeper(0, 259))
    assert kept == whole[: len(kept)]


def test_pruning_costs_and_attention_costs_less(
    model: Llava, processor: ProcessorMixin, scenes: list[AskedScene]
) -> None:
    at_random = pruned_right(model, processor, scenes, 0.05, random_keeper(0, 259))
    by_attention = pruned_right(model, processor, scenes, 0.05, attention_keeper(model))
    assert sum(at_random) < 45
    assert sum(by_attention) > sum(at_random)


def test_the_folder_is_an_ordinary_checkpoint() -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(testbed.WEIGHTS_FOLDER)
    assert isinstance(loaded, Llava)
    assert loaded.dtype == torch.float16
    assert loaded.generation_config.eos_token_id == 2


def test_a_changed_file_is_refused(weights_copy: Path) -> None:
    check_weights(weights_copy)
    path = weights_copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"has SHA-256 .* but SHA256 beside it says .*; reinstall"):
        check_weights(weights_copy)


def test_a_missing_file_is_refused(weights_copy: Path) -> None:
    (weights_copy / "SHA256").unlink()
    with pytest.raises(ModelError, match=r"must hold model\.safetensors and SHA256"):
        check_weights(weights_copy)


def test_an_export_is_complete_and_leaves_the_model_alone(tmp_path: Path) -> None:
    model = make_model(seed=2)
    export_weights(model, tmp_path / "out")
    check_weights(tmp_path / "out")
    assert model.dtype == torch.float32
    shipped = {file.name for file in testbed.WEIGHTS_FOLDER.iterdir()}
    assert {file.name for file in (tmp_path / "out").iterdir()} == shipped
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_training_cuts_images_as_the_processor_does(
    processor: ProcessorMixin, scenes: list[AskedScene]
) -> None:
    for asked in scenes[:3]:
        tiles = torch.stack(
            [torch.from_numpy(t.copy()) for t, _ in any_resolution_tiles(asked.scene)]
        )
        encoded = processor.image_processor([asked.image], return_tensors="pt")
        expected = tiles.permute(0, 3, 1, 2).float() / 127.5 - 1
        torch.testing.assert_close(encoded["pixel_values"][0], expected, atol=1e-6, rtol=0)


def test_a_prompt_is_one_image_and_the_question(processor: ProcessorMixin) -> None:
    prompt = prompt_of(processor, "is there a red star ?")
    assert prompt == "<user><image> is there a red star ? <assistant>"
    words = processor.tokenizer.tokenize("Is there a red Star?")
    assert words == ["is", "there", "a", "red", "star", "?"]


def test_the_card_names_the_shipped_weights() -> None:
    card = (Path(testbed.__file__).parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert file_sha256(testbed.WEIGHTS_FOLDER / "model.safetensors") in card
