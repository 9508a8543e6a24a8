"""Greedy text through HTTP is that of `model.generate` on the same weights, alone and in company."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import CHAT, chat_weights, sdk
from tests.processes import ROOT, Stack

pytestmark = pytest.mark.model

CHATS = [
    ("What is the capital of France?", 24),
    ("Write a haiku about rain.", 32),
    ("def fibonacci(n):", 40),
    ("List three colours.\n\n" + "Think of the sea, of grass and of fire. " * 12, 28),
    ("你好!请用中文介绍一下你自己。", 24),
    ("2 + 2 =", 16),
    ("hi", 12),
    ("Summarise: " + " ".join(f"sentence number {i} says little." for i in range(40)), 20),
]
PROMPTS = [
    ("Once upon a time", 30),
    ("The quick brown fox 12345", 20),
    ("import os\n\ndef main():", 25),
    ("Zwölf Boxkämpfer", 18),
]

# In a process of its own: two sets of weights and torch's threads do not belong into the test's.
REFERENCE = """
    import sys, orjson, torch
    from worker.engines.checkpoint import Checkpoint
    from worker.engines.options import EngineOptions
    path, (chats, prompts) = sys.argv[1], map(orjson.loads, sys.argv[2:])
    checkpoint = Checkpoint(EngineOptions(model_path=path, device="cpu", dtype="float32"))
    tokenizer, model = checkpoint.tokenizer(), checkpoint.causal_model()
    eos = checkpoint.eos_ids(model, tokenizer)
    def answer(prompt, tokens, special):
        given = torch.tensor([tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=special).ids])
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False,
                             eos_token_id=list(eos), pad_token_id=min(eos))
        ids = out[0, given.shape[1]:].tolist()
        text = tokenizer.backend_tokenizer.decode([i for i in ids if i not in eos], skip_special_tokens=True)
        print(orjson.dumps([text, len(ids), "stop" if ids[-1] in eos else "length"]).decode())
    for text, tokens in chats:
        messages = [{"role": "user", "content": text}]
        answer(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True), tokens, False)
    for text, tokens in prompts:
        answer(text, tokens, True)
"""


@pytest.fixture(scope="module")
def expected() -> list[list[Any]]:
    """(text, completion tokens, finish reason) for each chat, then for each prompt."""
    arguments = [chat_weights(), orjson.dumps(CHATS).decode(), orjson.dumps(PROMPTS).decode()]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REFERENCE), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [orjson.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


async def answer(openai: AsyncOpenAI, number: int) -> list[Any]:
    if number < len(CHATS):
        text, tokens = CHATS[number]
        reply = await openai.chat.completions.create(
            model=CHAT, messages=[{"role": "user", "content": text}], max_tokens=tokens, temperature=0
        )
        said = reply.choices[0].message.content
    else:
        text, tokens = PROMPTS[number - len(CHATS)]
        reply = await openai.completions.create(model=CHAT, prompt=text, max_tokens=tokens, temperature=0)  # type: ignore[assignment]
        said = reply.choices[0].text  # type: ignore[attr-defined]
    assert reply.usage is not None
    return [said, reply.usage.completion_tokens, reply.choices[0].finish_reason]


EVERY = range(len(CHATS) + len(PROMPTS))


@pytest.mark.parametrize(("concurrency", "numbers"), [(1, (1, 5, 9, 11)), (8, EVERY)], ids=["alone", "in company"])
async def test_greedy_text_is_that_of_generate(
    model_stack: Stack, expected: list[list[Any]], concurrency: int, numbers: Iterable[int]
) -> None:
    room = asyncio.Semaphore(concurrency)  # the next comes when one leaves: staggered, in mixed company

    async def one(openai: AsyncOpenAI, number: int) -> None:
        async with room:
            assert await answer(openai, number) == expected[number], number

    async with sdk(model_stack) as openai, asyncio.TaskGroup() as tasks:
        for number in numbers:
            tasks.create_task(one(openai, number))


async def test_a_greedy_stream_is_the_same(model_stack: Stack, expected: list[list[Any]]) -> None:
    async with sdk(model_stack) as openai:
        for number in (0, 4):
            text, tokens = CHATS[number]
            chunks = await openai.chat.completions.create(
                model=CHAT, messages=[{"role": "user", "content": text}], max_tokens=tokens, temperature=0, stream=True
            )
            assert "".join([chunk.choices[0].delta.content or "" async for chunk in chunks]) == expected[number][0]
