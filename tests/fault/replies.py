"""A set of requests to the real model that covers what a resumed sequence has to rebuild, and what came of each."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e.conftest import CHAT as MODEL
from tests.e2e.wire import Streamed
from tests.fault.streams import CHAT, Progress, watched
from tests.processes import Stack

COMPLETIONS = "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}
ONCE_UPON_A_TIME = [6403, 5980, 253, 655]


@dataclass(slots=True)
class Reply:
    """All that a client can tell one reply from another by; by choice."""

    texts: list[str] = field(default_factory=list)
    finish_reasons: list[list[str]] = field(default_factory=list)
    usage: dict[str, Any] | None = None

    @classmethod
    def streamed(cls, streamed: Streamed, choices: int) -> "Reply":
        assert streamed.error is None, streamed.error
        assert streamed.done
        reasons = [
            [row["finish_reason"] for row in streamed.choices(index) if row["finish_reason"]]
            for index in range(choices)
        ]
        return cls(
            [streamed.text(index) for index in range(choices)],
            reasons,
            streamed.chunks[-1]["usage"],
        )

    @classmethod
    def whole(cls, body: dict[str, Any]) -> "Reply":
        return cls(
            [choice["message"]["content"] for choice in body["choices"]],
            [[choice["finish_reason"]] for choice in body["choices"]],
            body["usage"],
        )


def ask(text: str, tokens: int, **options: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        **options,
    }


def requests(stop: str) -> dict[str, dict[str, Any]]:
    """By name. `stop`: see `straddling_stop`."""
    return {
        "greedy": ask("Write a story about a lighthouse.", 48),
        "seeded": ask("Write a story about a lighthouse.", 48, temperature=0.9, top_p=0.9, seed=11),
        "stop": ask(STOPPED, 60, stop=stop),
        "penalties": ask(
            "List words, again and again.", 48, temperature=0.8, seed=5,
            presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.2,
        ),
        "choices": ask("Name an animal and describe it.", 40, temperature=1.0, seed=7, n=3),
        "limit": ask("Count from one to a hundred.", 37),
        "ids": {"model": MODEL, "prompt": ONCE_UPON_A_TIME, "max_tokens": 48, "temperature": 0},
        "whole": ask("What is the sea?", 44),
        "unicode": ask("你好!请用中文介绍一下你自己。", 44),
    }  # fmt: skip


STOPPED = "Explain how rain is made."


async def straddling_stop(stack: Stack) -> str:
    """A string of the undisturbed reply to STOPPED that begins in one token and ends in the next, late in the reply."""
    streamed = await watched(stack, ask(STOPPED, 60), Progress())
    pieces = [row["delta"].get("content") or "" for row in streamed.choices()]
    text = "".join(pieces)
    for number in range(36, len(pieces)):
        left = pieces[number - 1]
        candidate = left[-3:] + pieces[number][:3]
        if len(candidate) > 4 and text.find(candidate) == len("".join(pieces[:number])) - len(left[-3:]):
            return candidate
    raise AssertionError(f"no stop string in {pieces}")


async def all_replies(stack: Stack, stop: str, progress: Progress) -> dict[str, Reply]:
    """All of them at once."""
    async with asyncio.TaskGroup() as tasks:
        running = {
            name: tasks.create_task(reply_to(stack, name, body, progress), name=name)
            for name, body in requests(stop).items()
        }
    return {name: task.result() for name, task in running.items()}


async def reply_to(stack: Stack, name: str, body: dict[str, Any], progress: Progress) -> Reply:
    if name == "whole":
        async with httpx2.AsyncClient(base_url=stack.url, timeout=90) as http:
            return Reply.whole((await http.post(CHAT, json=body)).json())
    path = COMPLETIONS if "prompt" in body else CHAT
    return Reply.streamed(await watched(stack, body | USAGE, progress, name, path), body.get("n", 1))
