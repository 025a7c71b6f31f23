"""Ask a server many questions at a time, and compare its answers with those given offline.

The questions are a JSONL file with `image` (a path beside it) and `question`, or with `--shipped`
the first held-out ones that come with the shipped model. With `--model`, the same model is loaded
here and asked one question at a time; then every answer has to be the same.

Example: python examples/serve.py testbed --strategy studies/quickstart/strategy.json
    python examples/load_test.py http://127.0.0.1:8000 --shipped 96 --clients 8 \\
        --model testbed --strategy studies/quickstart/strategy.json
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

PATIENCE = 300.0  # seconds until a request counts as lost


class LoadTestError(Exception):
    """The test cannot be made."""


@dataclass(frozen=True)
class Question:
    """An image, as the bytes of its file, and words."""

    image: bytes
    text: str


@dataclass(frozen=True)
class Answered:
    """A server's answer, the seconds it took, and what it says about the prompt's cost."""

    text: str
    seconds: float
    pruning: dict[str, Any]


def read_questions(file: Path) -> list[Question]:
    """The rows of a JSONL file; images are relative to it.

    Raises:
        LoadTestError: the file or an image cannot be read, or a row lacks one of the two.
    """
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
        return [
            Question((file.parent / row["image"]).read_bytes(), row["question"]) for row in rows
        ]
    except OSError as error:
        raise LoadTestError(
            f"{error.filename} cannot be read ({error.strerror}); check the path"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoadTestError(
            f"{file} holds a line that is no question ({error!r}); give each an image and a "
            "question"
        ) from error


def shipped_questions(number: int, seed: int) -> list[Question]:
    """The first held-out questions of the shipped model: four to a scene."""
    from vflowopt_search.testbed.data import evaluation_scenes

    found = []
    for scene in evaluation_scenes(number, seed):
        png = io.BytesIO()
        scene.image.save(png, "PNG")
        found += [Question(png.getvalue(), question.text) for question in scene.questions]
    return found


def ask(address: str, question: Question, max_tokens: int) -> Answered:
    """One chat of one image and one question.

    Raises:
        LoadTestError: nobody answers there, or what answers refuses.
    """
    data = base64.b64encode(question.image).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    content = [image, {"type": "text", "text": question.text}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    request = Request(
        f"{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    start = time.perf_counter()
    try:
        with urlopen(request, timeout=PATIENCE) as response:
            answer = json.load(response)
    except HTTPError as error:
        told = error.read().decode(errors="replace").strip()
        raise LoadTestError(
            f"{address} refuses a question ({error.code}: {told}); correct the question"
        ) from error
    except (URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise LoadTestError(
            f"{address} does not answer ({reason}); start examples/serve.py, and give the address "
            "that it prints"
        ) from error
    seconds = time.perf_counter() - start
    try:
        return Answered(answer["choices"][0]["message"]["content"], seconds, answer["pruning"])
    except (KeyError, IndexError, TypeError) as error:
        raise LoadTestError(
            f"{address} is no examples/serve.py (its answer lacks {error}); give that one's address"
        ) from error


def offline(questions: Sequence[Question], model: str, strategy: str, max_tokens: int) -> list[str]:
    """The answers of the same model here, one question at a time."""
    from vflowopt_search.calibration.images import open_image
    from vflowopt_search.calibration.samples import Sample
    from vflowopt_search.integrations.host import Host
    from vflowopt_search.model_source import ModelSource, load
    from vflowopt_search.strategy_hub import find_strategy

    found = None if strategy == "none" else find_strategy(strategy)
    host = Host(*load(ModelSource(model)), found)
    samples = [Sample(q.text, q.text, (open_image(q.image),)) for q in questions]
    answers = [
        host.answer([sample], max_new_tokens=max_tokens, do_sample=False)[0] for sample in samples
    ]
    host.close()
    return [answer.text.strip() for answer in answers]


def report(answered: Sequence[Answered], seconds: float, expected: Sequence[str]) -> dict[str, Any]:
    """Figures of a run; bytes are per request."""
    costs = [each.pruning for each in answered]
    waits = sorted(each.seconds for each in answered)
    measured = [cost["kv_bytes"] for cost in costs if cost["kv_bytes"] is not None]
    planned = [cost["planned_kv_bytes"] for cost in costs if cost["planned_kv_bytes"] is not None]
    return {
        "requests": len(answered),
        "requests_per_second": len(answered) / seconds,
        "seconds_median": statistics.median(waits),
        "seconds_95_percent": waits[int(0.95 * (len(waits) - 1))],
        "answered_together_mean": statistics.mean(c["answered_together"] for c in costs),
        "visual_tokens_mean": statistics.mean(c["visual_tokens"] for c in costs),
        "kept_per_layer_mean": [
            statistics.mean(layer)
            for layer in zip(*(cost["tokens_per_layer"] for cost in costs), strict=True)
        ],
        "kv_bytes_planned_mean": statistics.mean(planned) if planned else None,
        "kv_bytes_measured_mean": statistics.mean(measured) if measured else None,
        "compared_with_offline": len(expected),
        "different_from_offline": sum(
            each.text != text for each, text in zip(answered, expected, strict=False)
        ),
    }


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, Any], list[Answered]]:
    """Run the clients, print the figures; returns them and every answer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", help="of the server, as http://127.0.0.1:8000")
    parser.add_argument("questions", type=Path, nargs="?", help="JSONL file")
    parser.add_argument("--shipped", type=int, metavar="N", help="ask N shipped ones instead")
    parser.add_argument("--seed", type=int, default=0, help="of the shipped questions")
    parser.add_argument("--clients", type=int, default=8, help="requests at a time")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--model", help="load it here too, and compare the answers")
    parser.add_argument("--strategy", default="none", help="of the model loaded here")
    given = parser.parse_args(arguments)
    if (given.questions is None) == (given.shipped is None):
        parser.error("give a file of questions, or --shipped N")
    if given.questions is not None:
        questions, asked = read_questions(given.questions), str(given.questions)
    else:
        questions = shipped_questions(given.shipped, given.seed)
        asked = f"testbed, seed {given.seed}"
    if not questions:
        raise LoadTestError(f"{asked} holds no question; give at least one")
    start = time.perf_counter()
    with ThreadPoolExecutor(given.clients) as clients:
        answered = list(
            clients.map(lambda each: ask(given.address, each, given.max_tokens), questions)
        )
    seconds = time.perf_counter() - start
    expected: list[str] = []
    if given.model is not None:
        expected = offline(questions, given.model, given.strategy, given.max_tokens)
    figures = {"questions": asked, "clients": given.clients, **report(answered, seconds, expected)}
    print(json.dumps(figures, indent=2))
    return figures, answered


if __name__ == "__main__":
    from vflowopt_search.errors import VFlowOptError

    try:
        sys.exit(bool(main()[0]["different_from_offline"]))
    except (LoadTestError, VFlowOptError) as refused:
        sys.exit(f"error: {refused}")
