"""Serve a pruned model: prompts that arrive within a few milliseconds are answered together.

Understands the chats of OpenAI's protocol, with images as data addresses, and answers greedily, so
that an answer does not depend on who else is asking. Each answer says what its prompt cost.

Example: python examples/serve.py testbed --strategy studies/quickstart/strategy.json
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
        "messages": [{"role": "user", "content": "how many objects are there ?"}]}'

Needs `pip install "vflowopt-search[serve]"`. A demonstration: no queue limit, streaming or keys.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, Field

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException
except ImportError as missing:
    raise SystemExit(
        f"error: {missing.name} is not installed; install it with "
        'pip install "vflowopt-search[serve]"'
    ) from None

from vflowopt_search.calibration.conversations import arranged, is_usual, read_chat
from vflowopt_search.calibration.images import open_image
from vflowopt_search.calibration.samples import Mark, Sample
from vflowopt_search.errors import CalibrationError, VFlowOptError
from vflowopt_search.integrations.host import Host, Reply
from vflowopt_search.model_source import ModelSource, load
from vflowopt_search.strategy import Strategy
from vflowopt_search.strategy_hub import find_strategy, strategy_beside

USUAL_TOKENS = 64
"""Tokens that an answer may have, unless the client says otherwise."""
ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
"""Who may speak; the developer does as the system."""


class Chat(BaseModel):
    """What a client sends; fields of OpenAI's protocol that are not here are passed over."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)  # its newer name
    n: int = 1
    temperature: float = Field(default=0, le=0)  # greedy answers only
    stream: bool = False

    @property
    def longest(self) -> int:
        """Tokens that the answer may have."""
        return self.max_completion_tokens or self.max_tokens or USUAL_TOKENS


@dataclass(frozen=True)
class Waiting:
    """A prompt in the queue, and where its answer goes: the reply, and how many were together."""

    sample: Sample
    max_new_tokens: int
    answer: asyncio.Future[tuple[Reply, int]]


class Batcher:
    """Answers what is waiting in batches, one at a time, in a thread of its own.

    Args:
        host: the model.
        window: seconds that the first of a batch waits for others.
        largest: most prompts to a batch.
    """

    def __init__(self, host: Host, window: float, largest: int) -> None:
        self.host, self.window, self.largest = host, window, largest
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1)

    async def answer(self, sample: Sample, max_new_tokens: int) -> tuple[Reply, int]:
        """The answer to one prompt, and how many prompts were answered together."""
        future: asyncio.Future[tuple[Reply, int]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Waiting(sample, max_new_tokens, future))
        return await future

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(self.window)
            while len(batch) < self.largest and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            alike: dict[int, list[Waiting]] = defaultdict(list)
            for waiting in batch:
                alike[waiting.max_new_tokens].append(waiting)
            for group in alike.values():
                await self._answer_together(group)

    async def _answer_together(self, group: list[Waiting]) -> None:
        running = asyncio.wrap_future(self._thread.submit(self._generate, group))
        await asyncio.wait([running])
        error = running.exception()
        if error is not None and len(group) > 1:  # one prompt may have spoilt it for all
            for waiting in group:
                await self._answer_together([waiting])
            return
        for place, waiting in enumerate(group):
            if waiting.answer.done():  # the client has gone
                continue
            if error is not None:
                waiting.answer.set_exception(error)
            else:
                waiting.answer.set_result((running.result()[place], len(group)))

    def _generate(self, group: list[Waiting]) -> list[Reply]:
        return self.host.answer(
            [waiting.sample for waiting in group],
            max_new_tokens=group[0].max_new_tokens,
            do_sample=False,
            num_beams=1,
        )


def sample_of(chat: Chat) -> Sample:
    """The chat up to its last question.

    Raises:
        CalibrationError: it asks nothing, holds what is neither words nor an image, or an image
            is not in the request itself.
    """
    read = read_chat([_understood(message) for message in chat.messages], "all")
    pictures = read.media(Mark.IMAGE)
    if not read.question:
        raise CalibrationError("the chat asks nothing; let its last user message have words")
    if read.media(Mark.VIDEO) or not all(isinstance(each, bytes) for each in pictures):
        raise CalibrationError(
            "a message holds a video or an address; give images as data:image/png;base64,..."
        )
    turns = arranged(read.turns, {Mark.IMAGE: len(pictures), Mark.VIDEO: 0})
    return Sample(
        id="request",
        prompt=read.question,
        images=tuple(open_image(each) for each in pictures),
        turns=() if is_usual(turns) else turns,
    )


def _understood(message: dict[str, Any]) -> dict[str, Any]:
    """A message of which nothing will be passed over.

    Raises:
        CalibrationError: its role or a part of it is not understood.
    """
    role = message.get("role")
    if role not in ROLES:
        raise CalibrationError(
            f"a message has role {role!r} but only {', '.join(ROLES)} are understood; leave it out"
        )
    content = message.get("content")
    if content is not None and not isinstance(content, str | list):
        raise CalibrationError(
            f"a message's content is {content!r}, neither words nor a list of parts; correct it"
        )
    for part in content if isinstance(content, list) else ():
        _check_part(part)
    if message.get("tool_calls"):
        raise CalibrationError("a message calls tools, which no model here has; leave it out")
    return {"role": ROLES[role], "content": content}


def _check_part(part: Any) -> None:
    """Refuse what is neither words nor an image with an address."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return
    image = part.get("image_url") if kind == "image_url" else None
    if isinstance(image, str) or (isinstance(image, dict) and isinstance(image.get("url"), str)):
        return
    raise CalibrationError(
        f"a message holds a part of type {kind!r} that is not understood; give words as "
        '{"type": "text", "text": ...} and images as {"type": "image_url", "image_url": '
        '{"url": "data:image/png;base64,..."}}'
    )


class Server:
    """The two addresses of the service."""

    def __init__(self, batcher: Batcher, name: str) -> None:
        self.batcher, self.name = batcher, name

    def app(self) -> FastAPI:
        """The application, which starts and ends the batcher."""
        app = FastAPI(title="vflowopt-search", lifespan=self._running)
        app.add_api_route("/v1/chat/completions", self.complete, methods=["POST"])
        app.add_api_route("/health", self.health, methods=["GET"])
        return app

    @asynccontextmanager
    async def _running(self, app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    async def health(self) -> dict[str, str | None]:
        """Which model answers, under which strategy."""
        strategy = self.batcher.host.strategy
        return {"model": self.name, "strategy": None if strategy is None else strategy.name}

    async def complete(self, chat: Chat) -> dict[str, Any]:
        """Answer a chat."""
        if chat.stream:
            raise HTTPException(400, "stream is true, but answers come whole; leave it out")
        if chat.n != 1:
            raise HTTPException(400, f"n is {chat.n}, but a chat gets one answer; leave it out")
        try:
            reply, together = await self.batcher.answer(sample_of(chat), chat.longest)
        except VFlowOptError as error:
            raise HTTPException(400, str(error)) from error
        prompt = reply.text_tokens + reply.visual_tokens
        cost = asdict(reply)
        ended = "stop" if cost.pop("ended") else "length"
        message = {"role": "assistant", "content": cost.pop("text").strip()}
        return {
            "object": "chat.completion",
            "model": self.name,
            "choices": [{"index": 0, "message": message, "finish_reason": ended}],
            "usage": {"prompt_tokens": prompt, "completion_tokens": reply.new_tokens},
            "pruning": cost | {"answered_together": together},
        }


def named(strategy: str) -> Strategy | None:
    """A strategy by its file, folder or hub repository; None for `none`."""
    return None if strategy == "none" else find_strategy(strategy)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that clients may connect to."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise SystemExit(
            f"error: {host}:{port} cannot be listened at ({error}); choose another --host or --port"
        ) from None


def serve(given: argparse.Namespace) -> None:
    """Load the model, and answer until interrupted."""
    strategy = None if given.strategy is None else named(given.strategy)
    model, processor = load(ModelSource(given.model, given.device, given.dtype))
    if given.strategy is None:
        strategy = strategy_beside(model)
    batcher = Batcher(Host(model, processor, strategy), given.window_ms / 1000, given.largest)
    with _listening(given.host, given.port) as listening:
        place = f"http://{given.host}:{listening.getsockname()[1]}"
        how = "whole" if strategy is None else f"under strategy {strategy.name}"
        print(f"{given.model}, {how}, answers at {place}", flush=True)
        config = uvicorn.Config(Server(batcher, given.model).app(), log_level="warning")
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="hub name, folder, or testbed")
    parser.add_argument(
        "--strategy", help="file, folder, hub repository or none; default: the one beside the model"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--window-ms", type=float, default=5, help="wait so long for others")
    parser.add_argument("--largest", type=int, default=16, help="most prompts to a batch")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    try:
        serve(given)
    except VFlowOptError as refused:
        raise SystemExit(f"error: {refused}") from None
