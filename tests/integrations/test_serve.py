"""The serving example for real, in a process of its own: eight clients get the offline answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from tests.command import ROOT
from vflowopt_search import testbed
from vflowopt_search.budget import tokens_per_layer
from vflowopt_search.calibration.samples import Sample
from vflowopt_search.integrations.host import Host, Reply
from vflowopt_search.strategy import Importance, Stage, Strategy
from vflowopt_search.testbed.data import evaluation_scenes

FOUND = ROOT / "studies" / "quickstart" / "strategy.json"
QUESTIONS, CLIENTS, MAX_TOKENS = 40, 8, 6
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
BYTES_PER_TOKEN = 2 * 128 * 4  # key and value of one layer of the shipped model, in fp32


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """Questions as a file for the clients, and as samples."""
    folder = tmp_path_factory.mktemp("questions")
    samples, lines = [], []
    for number, scene in enumerate(evaluation_scenes(QUESTIONS, seed=11)):
        scene.image.save(folder / f"{number}.png")
        for question in scene.questions:
            lines.append(json.dumps({"image": f"{number}.png", "question": question.text}))
            samples.append(Sample(question.text, question.text, (scene.image,)))
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "questions.jsonl", samples


@pytest.fixture(scope="module")
def offline(asked: tuple[Path, list[Sample]]) -> list[Reply]:
    """Answers to the same questions, one at a time, without a server."""
    host = Host(testbed.load_model(), testbed.load_processor(), Strategy.load(FOUND))
    options: dict[str, Any] = {"max_new_tokens": MAX_TOKENS, "do_sample": False}
    replies = [host.answer([sample], **options)[0] for sample in asked[1]]
    host.close()
    return replies


@contextmanager
def serving(*more: str | Path) -> Iterator[str]:
    """The address of a server with the shipped model."""
    command = [sys.executable, ROOT / "examples" / "serve.py", "testbed", "--port", "0", *more]
    server = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = re.search(r"answers at (\S+)$", server.stdout.readline())
        assert found is not None, "the server did not start"
        yield found.group(1)
    finally:
        server.terminate()
        server.communicate()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("--strategy", FOUND, "--window-ms", "20") as place:
        yield place


def post(address: str, **body: Any) -> tuple[int, dict[str, Any]]:
    """Status and content of the answer to a chat."""
    request = Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urlopen(request) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def test_eight_clients_get_the_answers_given_offline_and_the_cache_planned(
    address: str, asked: tuple[Path, list[Sample]], offline: list[Reply]
) -> None:
    ask_all = runpy.run_path(str(ROOT / "examples" / "load_test.py"))["main"]
    arguments = [address, asked[0], "--clients", CLIENTS, "--max-tokens", MAX_TOKENS]
    figures, answered = ask_all([str(each) for each in arguments])
    assert [each.text for each in answered] == [reply.text.strip() for reply in offline]
    assert figures["requests"] == QUESTIONS
    # they were really answered together, and not all with the same neighbours
    together = [each.pruning["answered_together"] for each in answered]
    assert max(together) > 2
    assert figures["answered_together_mean"] > 2
    strategy = Strategy.load(FOUND)
    for each, alone in zip(answered, offline, strict=True):
        kept = tokens_per_layer(strategy.stages, 259, 8)
        assert each.pruning["visual_tokens"] == 259
        assert each.pruning["tokens_per_layer"] == kept
        others = alone.text_tokens + alone.new_tokens - 1
        planned = BYTES_PER_TOKEN * (sum(kept) + 8 * others)
        assert each.pruning["planned_kv_bytes"] == planned == alone.kv_bytes
        # in a batch, up to the longest question and answer of it
        longest = planned + BYTES_PER_TOKEN * 8 * (MAX_TOKENS + 12)
        assert planned <= each.pruning["kv_bytes"] < longest
        whole = BYTES_PER_TOKEN * 8 * (259 + others)
        assert each.pruning["kv_bytes"] < whole / 3


def test_a_bad_request_is_refused_and_does_not_spoil_others(address: str) -> None:
    words = [{"role": "user", "content": "how many objects are there ?"}]
    far = [{"type": "image_url", "image_url": {"url": "http://example.org/a.png"}}]
    own = [{"type": "image_url", "image_url": {"url": "/etc/hostname"}}]
    broken = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    text = [{"type": "text", "text": "what ?"}]
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"messages": words, "stream": True}, 400, "answers come whole"),
        ({"messages": []}, 400, "the chat asks nothing"),
        ({"messages": [{"role": "user", "content": far + text}]}, 400, "images as data:"),
        ({"messages": [{"role": "user", "content": own + text}]}, 400, "images as data:"),
        ({"messages": [{"role": "user", "content": broken + text}]}, 400, "no readable image"),
        ({"messages": words, "temperature": 0.7}, 422, "temperature"),
        ({"messages": words, "max_tokens": 0}, 422, "max_tokens"),
        ({"messages": words, "n": 3}, 400, "n is 3, but a chat gets one answer"),
        ({"messages": [{"role": "tool", "content": "2"}, *words]}, 400, "role 'tool'"),
        ({"messages": [{"content": "what ?"}]}, 400, "role None"),
        ({"messages": [{"role": "user", "content": {"text": "what ?"}}]}, 400, "neither words"),
        *(
            ({"messages": [{"role": "user", "content": [part, *text]}]}, 400, "not understood")
            for part in (
                {"type": "image_url"},
                {"type": "image_url", "image_url": {}},
                {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
                {"type": "text"},
                "what ?",
            )
        ),
    ]
    for body, status, sentence in cases:
        code, content = post(address, **body)
        assert (code, sentence in json.dumps(content)) == (status, True), content
    code, content = post(address, messages=words, max_tokens=2)
    assert code == 200
    assert content["pruning"]["visual_tokens"] == 0
    assert content["usage"]["completion_tokens"] <= 2


def test_the_newer_names_of_the_protocol_are_understood(address: str) -> None:
    words = [{"role": "user", "content": "how many objects are there ?"}]
    _, limited = post(address, messages=words, max_completion_tokens=1)
    assert limited["usage"]["completion_tokens"] == 1
    told = [{"role": role, "content": "answer with a colour"} for role in ("developer", "system")]
    answers = [post(address, messages=[one, *words], max_tokens=4)[1] for one in told]
    assert answers[0]["usage"] == answers[1]["usage"]
    assert answers[0]["usage"]["prompt_tokens"] > limited["usage"]["prompt_tokens"]


def test_the_shipped_questions_need_no_file(address: str) -> None:
    load_test = runpy.run_path(str(ROOT / "examples" / "load_test.py"))
    figures, answered = load_test["main"]([address, "--shipped", "6", "--seed", "3"])
    assert figures["questions"] == "testbed, seed 3" and figures["requests"] == 6
    scenes = list(evaluation_scenes(6, seed=3))
    texts = [question.text for scene in scenes for question in scene.questions]
    asked = load_test["shipped_questions"](6, 3)
    assert [one.text for one in asked] == texts
    assert all(each.pruning["visual_tokens"] == 259 for each in answered)


@pytest.mark.parametrize(
    ("program", "arguments", "sentence"),
    [
        ("load_test.py", ["http://127.0.0.1:9", "--shipped", "1"], "127.0.0.1:9 does not answer ("),
        (
            "load_test.py",
            ["http://127.0.0.1:9", "none.jsonl"],
            "none.jsonl cannot be read (No such",
        ),
        ("load_test.py", ["http://127.0.0.1:9", "pyproject.toml"], "line that is no question"),
        ("serve.py", ["testbed", "--strategy", "none.json"], "none.json cannot be read (No such"),
        ("serve.py", ["./nowhere"], "./nowhere does not exist; give a checkpoint's folder"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    program: str, arguments: list[str], sentence: str
) -> None:
    assert_refused(program, arguments, sentence)


def assert_refused(program: str, arguments: list[str], sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / program, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]  # loading a model draws a bar above it
    assert last.startswith("error: ") and sentence in last
    assert "Traceback" not in done.stderr


def test_a_server_without_uvicorn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"uvicorn is not installed; install it with pip install"):
        runpy.run_path(str(ROOT / "examples" / "serve.py"))


def test_an_answer_that_was_cut_off_says_so(address: str) -> None:
    words = [{"role": "user", "content": "how many objects are there ?"}]
    _, whole = post(address, messages=words, max_tokens=MAX_TOKENS)
    tokens = whole["usage"]["completion_tokens"]
    assert whole["choices"][0]["finish_reason"] == "stop"
    for limit, reason in ((tokens, "stop"), (tokens - 1, "length")):
        _, answered = post(address, messages=words, max_tokens=limit)
        assert answered["choices"][0]["finish_reason"] == reason
        assert answered["usage"]["completion_tokens"] == limit


def test_health_names_model_and_strategy(address: str) -> None:
    with urlopen(f"{address}/health") as response:
        assert json.load(response) == {"model": "testbed", "strategy": "quickstart"}


def answered(prompts: Sequence[tuple[Sample, int]], largest: int) -> list[Any]:
    """What the example's batcher gives to prompts that arrive at once, each with its limit."""
    module = runpy.run_path(str(ROOT / "examples" / "serve.py"))
    host = Host(testbed.load_model(), testbed.load_processor(), None)

    async def all_of_them() -> list[Any]:
        batcher = module["Batcher"](host, 0.05, largest)
        task = asyncio.create_task(batcher.run())
        answers = [batcher.answer(sample, limit) for sample, limit in prompts]
        found = await asyncio.gather(*answers, return_exceptions=True)
        task.cancel()
        return found

    return asyncio.run(all_of_them())


def test_one_spoilt_prompt_fails_alone() -> None:
    """What the model itself cannot take fails for its sender, not for those beside it."""
    good = Sample("good", "how many objects are there ?", (Image.new("RGB", (112, 112), "red"),))
    bad = Sample("bad", "<image> how many objects are there ?", ())  # a mark without an image
    first, refused, last = answered([(good, 2), (bad, 2), (good, 2)], 8)
    assert first[0].text == last[0].text
    assert isinstance(refused, Exception)


def test_a_batch_has_a_largest_size_and_everybody_their_own_limit() -> None:
    words = Sample("words", "how many objects are there ?", ())
    found = answered([(words, 1), (words, MAX_TOKENS), (words, 1), (words, 1)], 3)
    assert [together for _, together in found] == [2, 1, 2, 1]
    short, long, *_ = [reply for reply, _ in found]
    assert (short.new_tokens, short.ended) == (1, False)
    assert long.new_tokens > 1 and long.ended


def test_answers_are_compared_with_those_given_here(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(ROOT / "examples" / "load_test.py")
    asked: list[str] = [address, "--shipped", "8", "--max-tokens", "4", "--model", "testbed"]
    figures, _ = runpy.run_path(script)["main"]([*asked, "--strategy", str(FOUND)])
    assert (figures["compared_with_offline"], figures["different_from_offline"]) == (8, 0)
    blind = Strategy(
        name="blind",
        importance=Importance(score="random"),
        stages=(Stage(layer=0, keep_ratio=0.01),),
    )
    blind.save(tmp_path / "blind.json")
    monkeypatch.setattr(sys, "argv", [script, *asked, "--strategy", str(tmp_path / "blind.json")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert ended.value.code  # for a script that asks whether all were the same


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused("serve.py", ["testbed", "--strategy", "none", "--port", port], "or --port")
