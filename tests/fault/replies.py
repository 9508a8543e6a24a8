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

Scored = tuple[str, float | None]  # a token and its log probability


@dataclass(slots=True)
class Reply:
    """All that a client can tell one reply from another by; by choice."""

    texts: list[str] = field(default_factory=list)
    finish_reasons: list[list[str]] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    thoughts: list[str] = field(default_factory=list)
    calls: list[list[tuple[str, str]]] = field(default_factory=list)
    logprobs: list[list[Scored]] = field(default_factory=list, compare=False)  # see `is_scored_as`

    @classmethod
    def streamed(cls, streamed: Streamed, choices: int) -> "Reply":
        assert streamed.error is None, streamed.error
        assert streamed.done
        by_choice = [streamed.choices(index) for index in range(choices)]
        is_chat = "delta" in by_choice[0][0]
        return cls(
            [streamed.text(index) for index in range(choices)],
            [[row["finish_reason"] for row in rows if row["finish_reason"]] for rows in by_choice],
            _counts(streamed.chunks[-1]["usage"]),
            [streamed.reasoning(index) for index in range(choices)] if is_chat else [],
            [streamed.calls(index) for index in range(choices)] if is_chat else [],
            [[one for row in rows for one in _scored(row)] for rows in by_choice],
        )

    @classmethod
    def whole(cls, body: dict[str, Any]) -> "Reply":
        return cls(
            [choice["message"]["content"] for choice in body["choices"]],
            [[choice["finish_reason"]] for choice in body["choices"]],
            _counts(body["usage"]),
            logprobs=[_scored(choice) for choice in body["choices"]],
        )

    def is_scored_as(self, other: "Reply") -> bool:
        """Every token is there once. Values come out of batches of other shapes, and so with other rounding."""
        pairs = [
            pair
            for some, others in zip(self.logprobs, other.logprobs, strict=True)
            for pair in zip(some, others, strict=True)
        ]
        return all(
            token == other_token and abs((value or 0.0) - (other_value or 0.0)) < 1e-3
            for (token, value), (other_token, other_value) in pairs
        )


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Of a usage, what does not depend on what its workers had computed before."""
    return {name: count for name, count in usage.items() if name != "prompt_tokens_details"}


def _scored(choice: dict[str, Any]) -> list[Scored]:
    logprobs = choice["logprobs"] or {}
    if "tokens" in logprobs:
        return list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
    return [(one["token"], one["logprob"]) for one in logprobs.get("content", ())]


def ask(text: str, tokens: int, **options: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        **options,
    }


SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 30, "maxLength": 60},
        "kind": {"enum": ["poem", "story"]},
        "lines": {"type": "array", "items": {"type": "string", "minLength": 20}, "minItems": 2},
    },
    "required": ["title", "kind", "lines"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "write_letter",
        "parameters": {
            "type": "object",
            "properties": {"to": {"type": "string", "maxLength": 30}, "text": {"type": "string", "minLength": 100}},
            "required": ["to", "text"],
        },
    },
}
# With which "think" can begin: a call may come after thoughts, and is to come at once.
THINK_TOKENS = {"100": -100, "373": -100, "17400": -100, "39200": -100}
SNOW = "<think>Snow is made of ice. Ice scatters all light. So it looks white.</think>Snow is white."
GRASS = "<think>Grass is a plant. Plants have chlorophyll. So it looks green.</think>Grass is green."
THINKING = [
    {"role": "system", "content": "Think first, then answer."},
    {"role": "user", "content": "What is the colour of snow?"},
    {"role": "assistant", "content": SNOW},
    {"role": "user", "content": "What is the colour of grass?"},
    {"role": "assistant", "content": GRASS},
    {"role": "user", "content": "What is the colour of the sea?"},
]


def requests(stop: str) -> dict[str, dict[str, Any]]:
    """By name. `stop`: see `straddling_stop`."""
    return {
        "greedy": ask("Write a story about a lighthouse.", 48),
        "seeded": ask(
            "Write a story about a lighthouse.", 48, temperature=0.9, top_p=0.9, seed=11, logprobs=True, top_logprobs=2
        ),
        "stop": ask(STOPPED, 60, stop=stop, logprobs=True),
        "penalties": ask(
            "List words, again and again.", 48, temperature=0.8, seed=5, logit_bias={"28": -100, "30": 8},
            presence_penalty=0.5, frequency_penalty=0.7, repetition_penalty=1.2,
        ),
        "choices": ask("Name an animal and describe it.", 40, temperature=1.0, seed=7, n=3, logprobs=True),
        "limit": ask("Count from one to a hundred.", 37),
        "ids": {
            "model": MODEL, "prompt": ONCE_UPON_A_TIME, "max_tokens": 48, "temperature": 0, "echo": True, "logprobs": 1
        },
        "whole": ask("What is the sea?", 44, logprobs=True),
        "unicode": ask("你好!请用中文介绍一下你自己。", 44),
        "at least": ask("Say yes.", 60, min_tokens=36, stop_token_ids=[2, 28, 30]),
        "schema": ask(
            "Write a poem as JSON.", 56, temperature=1.2, seed=2, logprobs=True,
            response_format={"type": "json_schema", "json_schema": {"name": "poem", "schema": SCHEMA, "strict": True}},
        ),
        "call": ask(
            "Write a letter to my aunt.", 56, temperature=0.8, seed=3, logprobs=True, tools=[TOOL],
            tool_choice="required", logit_bias=THINK_TOKENS,
        ),
        "thoughts": ask("", 48, messages=THINKING, logprobs=True),
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
