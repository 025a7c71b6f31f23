"""A strategy beside its checkpoint and on the hub; the hub is a real server, on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, errors

from tests.command import PROGRAM, ROOT
from tests.integrations.fake_hub import TOKEN, FakeHub, fake_hub
from tests.pruning.oracle import ragged_inputs, strategy_of
from tests.tiny import save_checkpoint, tiny_model
from vflowopt_search import load_calibration, prune, pruned, pull_strategy, push_strategy
from vflowopt_search.adapters.loading import load_model
from vflowopt_search.errors import CalibrationError, ModelError, StrategyError
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import STRATEGY_FILE, find_strategy

HALF = strategy_of((1, 0.5))
THIRD = strategy_of((1, 1 / 3))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that this process is online with; the settings are huggingface_hub's own."""
    with fake_hub() as served:
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def kept_of(handle: Any, model: Any) -> list[int]:
    """Visual tokens in the layers of the first prompt of a batch."""
    with torch.no_grad():
        model(**ragged_inputs("llava"))
    return list(handle.last.tokens_per_layer[0])


# --- beside a folder


def test_a_strategy_in_the_checkpoints_folder_is_taken(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "mine")
    HALF.save(folder / STRATEGY_FILE)
    model = load_model(folder)
    handle = prune(model)
    assert kept_of(handle, model) == [16] + [8] * 5
    handle.remove()
    with pruned(model) as applied:
        assert kept_of(applied, model) == [16] + [8] * 5
    with pruned(model, folder) as applied:  # the folder by name
        assert kept_of(applied, model) == [16] + [8] * 5
    with pruned(model, THIRD) as applied:  # what is said wins
        assert kept_of(applied, model) == [16] + [5] * 5


def test_a_folder_without_one_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(StrategyError, match=rf"{checkpoint} holds no {STRATEGY_FILE}; save one"):
        prune(load_model(checkpoint))
    with pytest.raises(StrategyError, match=f"holds no {STRATEGY_FILE}"):
        find_strategy(checkpoint)


def test_a_model_made_from_a_configuration_has_no_place() -> None:
    with pytest.raises(StrategyError, match="does not say where it was loaded from"):
        prune(tiny_model("llava"))


def test_a_folder_that_went_away_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "mine")
    model = load_model(folder)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="does not exist"):
        prune(model)


def test_the_strategy_beside_it_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "mine")
    strategy_of((17, 0.5)).save(folder / STRATEGY_FILE)
    with pytest.raises(StrategyError, match=r"does not fit: .*17"):
        prune(load_model(folder))


# --- on the hub


def test_what_was_pushed_is_pulled(hub: FakeHub, tmp_path: Path) -> None:
    address = push_strategy("owner/new", HALF, private=True)
    repository = hub.repositories["owner/new"]
    sha = repository.names["main"]
    assert address == f"{hub.url}/owner/new/commit/{sha}"
    assert repository.private
    assert repository.messages[-1] == "Strategy test"
    assert pull_strategy("owner/new") == HALF == find_strategy("owner/new")
    THIRD.save(tmp_path / "third.json")
    push_strategy("owner/new", tmp_path / "third.json", commit_message="better")
    assert repository.messages[-1] == "better"
    assert pull_strategy("owner/new") == THIRD
    assert pull_strategy("owner/new", revision=sha) == HALF
    push_strategy("owner/new", HALF, filename="half.json")
    assert pull_strategy("owner/new", filename="half.json") == HALF
    assert pull_strategy("owner/new") == THIRD


def test_a_pull_request_leaves_the_branch_alone(hub: FakeHub) -> None:
    hub.repository("others/model").commit({"config.json": b"{}"})
    address = push_strategy("others/model", HALF, create_pr=True)
    assert address == f"{hub.url}/others/model/discussions/1"
    assert pull_strategy("others/model", revision="refs/pr/1") == HALF
    with pytest.raises(StrategyError, match=f"others/model holds no {STRATEGY_FILE}; push one"):
        pull_strategy("others/model")


def test_what_the_hub_refuses_is_said_in_one_sentence(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("owner/broken").commit({STRATEGY_FILE: b'{"format": "vflowopt-strategy/9"}'})
    hub.repository("others/secret").private = True
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("owner/nothing", {}, "there is no repository owner/nothing for you"),
        ("others/secret", {"token": "hf_stranger"}, "there is no repository others/secret for you"),
        ("owner/broken", {"revision": "v9"}, "owner/broken has no revision 'v9'"),
        ("owner/broken", {}, "has format 'vflowopt-strategy/9'"),
        ("no name/at all", {}, "is no name of a hub repository"),
    ]
    for name, options, sentence in cases:
        with pytest.raises(StrategyError, match=sentence):
            pull_strategy(name, **options)
    with pytest.raises(StrategyError, match=r"the hub refuses vflowopt_strategy\.json of owner/x"):
        push_strategy("owner/x", HALF, token="hf_stranger")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(StrategyError, match=r"the hub refuses .* check your token"):
        push_strategy("owner/x", HALF)


def test_offline_what_was_fetched_is_there_and_nothing_is_asked(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_strategy("owner/cached", HALF)
    assert pull_strategy("owner/cached") == HALF
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert pull_strategy("owner/cached") == HALF
    told = r"is not in the hub's local cache.*; fetch it once with network, or get the file by"
    with pytest.raises(StrategyError, match=told):
        pull_strategy("owner/other")
    for wrong in ("notaname", "a/b/c", "owner/what?"):  # not the network, but the name
        with pytest.raises(StrategyError, match=r"is no name of a hub repository.*give owner/name"):
            push_strategy(wrong, THIRD)
    with pytest.raises(StrategyError, match="HF_HUB_OFFLINE is set; push it with network"):
        push_strategy("owner/cached", THIRD)
    assert len(hub.requests) == asked


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StrategyError, match="the hub does not answer; push it with network"):
        push_strategy("owner/x", HALF)
    with pytest.raises(StrategyError, match="the hub is not asked or does not answer"):
        pull_strategy("owner/x")


def test_a_model_of_the_hub_brings_the_strategy_of_its_revision(
    hub: FakeHub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlavaForConditionalGeneration

    files = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    repository = hub.repository("owner/llava")
    repository.names["bare"] = repository.commit(files)
    repository.names["v1"] = repository.commit({STRATEGY_FILE: HALF.to_json().encode()})
    repository.commit({STRATEGY_FILE: THIRD.to_json().encode()})

    def load(revision: str) -> Any:
        return LlavaForConditionalGeneration.from_pretrained("owner/llava", revision=revision)

    old, new = load("v1"), load("main")
    with pruned(old, revision="v1") as applied:
        assert kept_of(applied, old) == [16] + [8] * 5
    with pruned(new) as applied:
        assert kept_of(applied, new) == [16] + [5] * 5
    with pruned(new, "owner/llava", revision="v1") as applied:
        assert kept_of(applied, new) == [16] + [8] * 5
    with pytest.raises(StrategyError, match=rf"owner/llava at bare holds no {STRATEGY_FILE}"):
        prune(load("bare"), revision="bare")
    # transformers until 5.17 remembers the commit that was loaded
    old.config._commit_hash = repository.names["v1"]
    with pruned(old) as applied:
        assert kept_of(applied, old) == [16] + [8] * 5
    # what was fetched once serves without network
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pruned(old) as applied:
        assert kept_of(applied, old) == [16] + [8] * 5
    with pruned(new) as applied:
        assert kept_of(applied, new) == [16] + [5] * 5


# --- the command line


def test_push_and_pull_as_commands(tmp_path: Path) -> None:
    HALF.save(tmp_path / "half.json")
    with fake_hub() as served:
        environment = {
            **os.environ,
            "HF_ENDPOINT": served.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "PYTHONPATH": str(ROOT),
        }

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )

        pushed = run("push", "half.json", "owner/mine")
        assert pushed.returncode == 0, pushed.stderr
        assert f"{served.url}/owner/mine/commit/" in pushed.stdout
        pulled = run("pull", "owner/mine", "--output", "back.json", "--json")
        assert pulled.returncode == 0, pulled.stderr
        assert Strategy.loads(pulled.stdout) == HALF
        missing = run("pull", "owner/mine", "--revision", "v2")
    assert Strategy.load(tmp_path / "back.json") == HALF
    assert missing.returncode == 1
    assert missing.stderr == (
        "error: owner/mine has no revision 'v2'; name a branch, a tag or a commit of it\n"
    )


# --- a connection that breaks off


@pytest.mark.parametrize("asked", ["POST /api/repos/create", "POST /api/models/owner/new/commit"])
@pytest.mark.parametrize("how", ["drops", "fails"])
def test_a_push_that_breaks_off_is_one_sentence(hub: FakeHub, asked: str, how: str) -> None:
    setattr(hub, how, asked)
    with pytest.raises(StrategyError, match=r"of owner/new broke off \(.+\); do it again when"):
        push_strategy("owner/new", HALF)
    setattr(hub, how, "")
    push_strategy("owner/new", HALF)
    assert pull_strategy("owner/new") == HALF


@pytest.mark.parametrize("how", ["drops", "fails"])
def test_a_pull_that_breaks_off_is_one_sentence(
    hub: FakeHub, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_strategy(f"owner/{how}", HALF)  # nothing of it is in the local cache
    setattr(hub, how, f"GET /owner/{how}/resolve")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)  # retries
    with pytest.raises(StrategyError, match=rf"of owner/{how} broke off \(.+\); do it again when"):
        pull_strategy(f"owner/{how}")


def test_a_refusal_is_no_broken_connection(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    with pytest.raises(StrategyError, match=r"refuses .*; check your token"):
        push_strategy("owner/new", HALF)


[CLIENT_ERROR] = [each for each in errors.HfHubHTTPError.__bases__ if each is not OSError]
BROKEN_OFF = [CLIENT_ERROR("peer closed connection"), errors.XetDownloadError("no chunk")]


@pytest.mark.parametrize("broken", BROKEN_OFF)
def test_data_and_models_that_break_off_are_one_sentence(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    def breaks_off(*args: Any, **options: Any) -> None:
        raise broken

    monkeypatch.setattr("datasets.load_dataset", breaks_off)
    with pytest.raises(CalibrationError, match=rf"owner/set cannot be read .*\({broken}\); give"):
        load_calibration("owner/set")
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", breaks_off)
    with pytest.raises(ModelError, match=f"owner/model cannot be loaded: {broken}"):
        load_model("owner/model")
