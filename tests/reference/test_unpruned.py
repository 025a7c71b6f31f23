"""The reference is the plain model's, computed once, and never trusted when it should not be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tests.small_set import PROMPTS, small_set
from tests.tiny import FAMILIES, tiny_model, tiny_processor
from vflowopt_search.adapters.loading import pixel_scale
from vflowopt_search.adapters.registry import adapter_for
from vflowopt_search.calibration.encoding import encode
from vflowopt_search.calibration.samples import CalibrationSet
from vflowopt_search.errors import CacheError
from vflowopt_search.reference import cache as cache_module
from vflowopt_search.reference.shelf import CacheFolder
from vflowopt_search.reference.unpruned import Reference, build_reference

every_family = pytest.mark.parametrize("family", FAMILIES)


def built(
    family: str,
    cache: Path | None,
    *,
    model: Any = None,
    processor: Any = None,
    calibration: CalibrationSet | None = None,
) -> Reference:
    processor = processor or tiny_processor(family)
    return build_reference(
        adapter_for(model or tiny_model(family)),
        processor,
        calibration or small_set(),
        pixel_scale(processor),
        cache=None if cache is None else CacheFolder(cache, 10**9),
    )


@every_family
def test_the_readout_is_that_of_each_sample_alone(family: str) -> None:
    model, processor, calibration = tiny_model(family), tiny_processor(family), small_set()
    reference = built(family, None, model=model, calibration=calibration)
    for row, sample in enumerate(calibration.samples):
        with torch.no_grad():
            alone = model(**encode(processor, [sample]), output_hidden_states=True)
        logits_V, hidden_LD = (
            reference.readout.logits_BV[row],
            reference.readout.hidden_BLD[row],
        )
        torch.testing.assert_close(logits_V, alone.logits[0, -1], rtol=1e-4, atol=2e-5)
        states = alone.hidden_states  # embeddings first; the last one is after the final norm
        assert len(states) == len(hidden_LD) + 1
        for layer, state in enumerate(states[1:]):
            torch.testing.assert_close(hidden_LD[layer], state[0, -1], rtol=1e-4, atol=2e-5)


@every_family
def test_a_second_time_comes_from_disk_and_is_the_same(family: str, tmp_path: Path) -> None:
    first, second = built(family, tmp_path), built(family, tmp_path)
    assert not first.from_cache
    assert second.from_cache
    assert torch.equal(first.readout.hidden_BLD, second.readout.hidden_BLD)
    assert torch.equal(first.readout.logits_BV, second.readout.logits_BV)
    for mine, other in zip(first.prepared.samples, second.prepared.samples, strict=True):
        assert torch.equal(mine.input_ids, other.input_ids)
        assert mine.entropy is not None
        assert other.entropy is not None
        for one, same in zip(mine.entropy, other.entropy, strict=True):
            assert torch.equal(one, same)
        for one, same in zip(mine.features, other.features, strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("turn", ["built", "mapped", "read"])
def test_images_that_come_again_are_stored_and_held_once(turn: str, tmp_path: Path) -> None:
    plain = small_set(3)
    twins = tuple(replace(plain.samples[i % 2], id=str(i), prompt=PROMPTS[i]) for i in range(4))
    calibration = replace(plain, samples=twins, sha256="twins")
    cache = None if turn == "built" else tmp_path
    if turn == "read":
        built("llava_onevision", cache, calibration=calibration)
    reference = built("llava_onevision", cache, calibration=calibration)
    assert reference.from_cache == (turn == "read")
    first, second, third, fourth = reference.prepared.samples
    for one, same in ((first, third), (second, fourth)):
        assert one.features[0] is same.features[0]
        assert one.entropy is not None and same.entropy is not None
        assert one.entropy[0] is same.entropy[0]
    assert first.features[0] is not second.features[0]
    alone = built("llava_onevision", None, calibration=calibration)
    torch.testing.assert_close(reference.readout.logits_BV, alone.readout.logits_BV)
    for stored in tmp_path.rglob("*.safetensors"):
        tokens = len(first.features[0]) + len(second.features[0])
        assert len(load_file(stored)["features_image"]) == tokens


def test_only_what_a_metric_reads_is_moved() -> None:
    reference = built("llava", None)
    everything = reference.rows([2, 0], torch.device("cpu"))
    last = reference.rows([2, 0], torch.device("cpu"), layers=False, logits=False)
    assert torch.equal(everything.hidden_BLD[:, -1:], last.hidden_BLD)
    assert everything.hidden_BLD.shape[1] == 6
    assert everything.logits_BV.shape[1] > 0
    assert last.logits_BV.shape == (2, 0)


def nudge_a_weight() -> dict[str, Any]:
    model = tiny_model("llava")
    with torch.no_grad():
        model.lm_head.weight[3, 3] += 1e-3
    return {"model": model}


def change_the_processor() -> dict[str, Any]:
    processor: Any = tiny_processor("llava")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    return {"processor": processor}


def attend_otherwise(part: str) -> dict[str, Any]:
    model = tiny_model("llava")
    model.set_attn_implementation({part: "eager"})
    return {"model": model}


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "weights": nudge_a_weight,
    "samples": lambda: {"calibration": small_set(seed=2)},
    "dtype": lambda: {"model": tiny_model("llava", dtype=torch.bfloat16)},
    "processor": change_the_processor,
    "attention of the decoder": lambda: attend_otherwise("text_config"),
    "attention of the vision encoder": lambda: attend_otherwise("vision_config"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str, tmp_path: Path) -> None:
    built("llava", tmp_path)
    assert not built("llava", tmp_path, **CHANGES[change]()).from_cache
    assert built("llava", tmp_path).from_cache


def rewrite(path: Path, data: bytes) -> None:
    """A new file: the old one may be mapped into memory."""
    path.unlink()
    path.write_bytes(data)


def truncate(path: Path) -> None:
    rewrite(path, path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 0x40
    rewrite(path, bytes(data))


def lose_the_label(path: Path) -> None:
    path.with_suffix(".json").unlink()


def garble_the_label(path: Path) -> None:
    path.with_suffix(".json").write_text("[1, 2")


def drop_a_tensor(path: Path) -> None:
    """A whole file with a right checksum whose features are of fewer samples."""
    from safetensors.torch import save_file

    from vflowopt_search.reference.cache import file_sha256

    tensors = load_file(path)
    tensors["features_image"] = tensors["features_image"][:-1].contiguous()
    path.unlink()
    save_file(tensors, path)
    label = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(label | {"sha256": file_sha256(path)}))


@pytest.mark.parametrize(
    "damage", [truncate, flip_a_byte, lose_the_label, garble_the_label, drop_a_tensor]
)
def test_a_damaged_file_is_rebuilt(damage: Callable[[Path], None], tmp_path: Path) -> None:
    whole = built("llava_onevision", tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    damage(path)
    again = built("llava_onevision", tmp_path)
    assert not again.from_cache
    assert torch.equal(whole.readout.logits_BV, again.readout.logits_BV)
    assert built("llava_onevision", tmp_path).from_cache


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(CacheError, match=r"cannot be written .* name another one with --cache"):
        built("llava", blocked)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(cache_module, "save_file", fail)
    with pytest.raises(CacheError, match=r"No space left on device.*make room there"):
        built("llava", tmp_path)


def test_nothing_half_written_stays_behind(tmp_path: Path) -> None:
    built("llava", tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "reference.json",
        "reference.safetensors",
    ]


def test_progress_counts_every_sample() -> None:
    seen: list[tuple[int, int]] = []
    processor = tiny_processor("llava")
    build_reference(
        adapter_for(tiny_model("llava")),
        processor,
        replace(small_set(20)),
        pixel_scale(processor),
        cache=None,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(0, 20), (8, 20), (10, 20), (20, 20)]
