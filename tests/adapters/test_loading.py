"""Loading by folder: what a hub checkpoint holds, on a machine without torchvision."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, ProcessorMixin

from tests.test_memory_errors import OUT_OF_MEMORY
from tests.tiny import FAMILIES, save_checkpoint, tiny_config, tiny_model
from vflowopt_search.adapters import hub
from vflowopt_search.adapters.hub import find_checkpoint, hub_answers
from vflowopt_search.adapters.loading import load_model, load_processor, random_init
from vflowopt_search.errors import ModelError

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_loads_the_weights_of_a_folder(family: str, checkpoints: dict[str, Path]) -> None:
    model, expected = load_model(checkpoints[family]), tiny_model(family)
    assert not model.training
    assert model.dtype == torch.float32
    for (name, loaded), saved in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(loaded, saved), name


def test_loads_in_the_asked_precision(checkpoints: dict[str, Path]) -> None:
    assert load_model(str(checkpoints["llava"]), dtype="bfloat16").dtype == torch.bfloat16


# --- what cannot be loaded


def test_an_empty_folder(tmp_path: Path) -> None:
    for load in (load_model, load_processor):
        with pytest.raises(ModelError, match=r"holds no config\.json"):
            load(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist; give a checkpoint's folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(ModelError, match="does not exist"):
        load_processor("./nothing")


def test_a_file_is_no_checkpoint(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is a file; give the folder"):
        load_model(checkpoints["llava"] / "config.json")


def test_a_hub_name_without_network_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "offline_wanted", lambda: False)
    monkeypatch.setattr(hub, "urlopen", no_network)
    start = time.monotonic()
    for load in (load_model, load_processor):
        with pytest.raises(ModelError, match="nor in the hub's local cache, and the hub"):
            load("nobody-here/nothing")
    assert time.monotonic() - start < 5  # transformers itself retries for 24 seconds


@contextmanager
def speaks_no_http() -> Iterator[str]:
    """The address of a server that answers with anything but HTTP, as a proxy may."""

    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"220 mail ready\r\n")

    with socketserver.TCPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_that_is_no_http_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "offline_wanted", lambda: False)
    with speaks_no_http() as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        with pytest.raises(ModelError, match="nor in the hub's local cache, and the hub"):
            load_model("nobody-here/nothing")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": "unheard_of"}'])
def test_a_malformed_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=f"^{tmp_path} cannot be loaded: .+"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["", "junk", "{}"])
def test_a_file_that_is_no_configuration(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ModelError, match=r"file is no configuration; give a model's config\.json"):
        random_init(tmp_path / "file")


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is of type llama, which is not an image-text model"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, None])
def test_damaged_weights(content: bytes | None, tmp_path: Path) -> None:
    file = save_checkpoint(tmp_path, "llava") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000] if content is None else content)
    with pytest.raises(ModelError, match=r"the safetensors file is damaged .*; fetch it again"):
        load_model(tmp_path)


def test_missing_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = save_checkpoint(tmp_path, "llava") / "model.safetensors"
    weights = load_file(file)
    weights.pop(next(name for name in weights if "layers.3.mlp.up_proj" in name))
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights \(such as .*layers\.3\.mlp\.up_proj"):
        load_model(tmp_path)


def test_code_of_its_own_is_not_run_unasked(tmp_path: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ModelError, match="read that code, then pass trust_remote_code=True"):
        load_model(tmp_path)


def test_no_such_device_or_precision(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="'toaster' is no torch device"):
        load_model(checkpoints["llava"], device="toaster")
    for dtype in ("int8", "float33", "nn"):
        with pytest.raises(ModelError, match=f"'{dtype}' is no precision; use auto, float32"):
            load_model(checkpoints["llava"], dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="torch sees no GPU; use cpu"):
        load_model(checkpoints["llava"], device="cuda")


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("load", [load_model, random_init])
def test_out_of_memory_is_no_damaged_checkpoint(
    load: Callable[..., Any],
    error: Exception,
    checkpoints: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise error

    for name in ("from_pretrained", "from_config"):
        monkeypatch.setattr(AutoModelForImageTextToText, name, full)
    with pytest.raises(ModelError, match=r"does not fit in the memory of cpu; load it in bf") as no:
        load(checkpoints["llava"])
    assert no.value.__cause__ is error


def test_what_transformers_said_can_be_looked_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text("{}")
    caplog.set_level(logging.DEBUG, "vflowopt_search")
    with pytest.raises(ModelError) as told:
        load_model(tmp_path)
    [record] = caplog.records
    assert record.exc_info is not None and record.exc_info[1] is told.value.__cause__


def test_a_mistake_of_ours_is_not_the_checkpoints(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(kind: type[ProcessorMixin]) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("vflowopt_search.adapters.loading.without_video", mistaken)
    with pytest.raises(KeyError, match="ours"):
        load_processor(checkpoints["llava_onevision"])


# --- a configuration alone


@every_family
def test_random_init_takes_file_or_folder(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    one = random_init(tmp_path / "config.json")
    other = random_init(str(tmp_path))
    assert one.config.model_type == family
    assert not one.training
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


def test_random_init_leaves_the_global_generator(tmp_path: Path) -> None:
    tiny_config("llava").save_pretrained(tmp_path)
    before = torch.get_rng_state()
    model = random_init(tmp_path, dtype="bfloat16", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.dtype == torch.bfloat16
    other: Any = random_init(tmp_path, dtype="bfloat16", seed=2)
    mine: Any = model
    assert not torch.equal(mine.lm_head.weight, other.lm_head.weight)


def test_random_init_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist; give a model's config\.json"):
        random_init(tmp_path / "config.json")
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not an image-text model"):
        random_init(tmp_path)


# --- folder or hub name


def test_find_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_checkpoint(tmp_path)
    assert (folder.name, folder.local_only, folder.is_folder) == (str(tmp_path), True, True)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    name = find_checkpoint("owner/name")
    assert (name.name, name.local_only, name.is_folder) == ("owner/name", False, False)


def test_offline_wanted_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "urlopen", unreachable)
    assert not hub_answers()
