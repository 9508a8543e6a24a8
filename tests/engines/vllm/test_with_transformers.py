"""In vLLM's own environment: sequences that go from vLLM to transformers and back, by the same weights."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.messages import Resume, Structured
from tests.engines.test_conformance import Client
from tests.engines.test_lora import KINDS, save_adapter
from worker.engines import transformers_impl, vllm_impl
from worker.engines.options import EngineOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")
COMMON: dict[str, Any] = {"dtype": "float32", "threads": 1, "slots": 4}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(llama_for_vllm: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Client, Client]]:
    path = str(llama_for_vllm)
    adapters = []
    for seed, (name, config) in enumerate(KINDS.items()):
        folder = save_adapter(llama_for_vllm, tmp_path_factory.mktemp("adapters") / name, seed, **config)
        adapters.append((name, str(folder)))
    common = {"model_path": path, "lora_modules": tuple(adapters), **COMMON}
    engines = (
        vllm_impl.create(EngineOptions(enforce_eager=True, **common)),
        transformers_impl.create(EngineOptions(device="cpu", **common)),
    )
    clients = []
    for engine in engines:
        client = Client(engine, await asyncio.to_thread(engine.load))
        engine.start(client.deliver)
        clients.append(client)
    yield clients[0], clients[1]
    for engine in engines:
        await engine.stop()


@pytest.fixture(params=[(0, 1), (1, 0)], ids=["from vllm", "from transformers"])
def ways(request: pytest.FixtureRequest, both: tuple[Client, Client]) -> tuple[Client, Client]:
    for client in both:
        client.begin()
    return both[request.param[0]], both[request.param[1]]


async def test_they_have_one_fingerprint(both: tuple[Client, Client]) -> None:
    assert both[0].info.fingerprint == both[1].info.fingerprint
    assert (both[0].info.name, both[1].info.name) == ("vllm", "transformers")


async def test_an_adapter_says_the_same_by_both(both: tuple[Client, Client]) -> None:
    for client in both:
        client.begin()
    assert both[0].info.adapters == both[1].info.adapters
    said = []
    for adapter in range(len(KINDS) + 1):
        answers = [await client.answer(f"with {adapter}", max_tokens=30, adapter=adapter) for client in both]
        assert answers[0].token_ids == answers[1].token_ids
        half = answers[0].token_ids[:15]
        rest = await both[1].answer(f"on {adapter}", max_tokens=30, adapter=adapter, resume=Resume(half, 0))
        assert half + rest.token_ids == answers[0].token_ids
        said.append(tuple(half))
    assert len(set(said)) == len(said)


SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {},
    "constrained": {"structured": Structured("regex", "([a-z]{3} [0-9]){4}")},
    "penalized": {"presence_penalty": 0.7, "frequency_penalty": 1.5, "repetition_penalty": 1.1},
    "biased": {"logit_bias": {70: 5.0}, "min_tokens": 6, "stop_token_ids": (70,)},
}


@pytest.mark.parametrize("how", SAMPLING)
async def test_what_one_began_the_other_ends(ways: tuple[Client, Client], how: str) -> None:
    first, second = ways
    sampling = {"max_tokens": 40, "logprobs": 1, **SAMPLING[how]}
    whole = await first.answer("whole", **sampling)
    assert len(whole.token_ids) > 4
    for tokens in (0, 1, len(whole.token_ids) // 2, len(whole.token_ids)):
        ids, text = whole.token_ids[:tokens], "".join(whole.texts[:tokens])
        rest = await second.answer(f"from {tokens}", **sampling, resume=Resume(ids, len(text)))
        assert (ids + rest.token_ids, text + rest.text) == (whole.token_ids, whole.text)
        assert (rest.finish_reason, rest.counts) == (whole.finish_reason, whole.counts)
        for ours, theirs in zip(rest.logprobs, whole.logprobs[tokens:], strict=True):
            assert ours.token == theirs.token
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
