"""What llama.cpp tells in ways of its own: tokens that end within a character, and embeddings."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llguidance import LLTokenizer
from numpy.typing import NDArray
from transformers import AutoModel, PreTrainedTokenizerFast

from shared.errors import StartupError
from shared.messages import Resume, Structured
from tests.e2e.conftest import chat_weights
from tests.engines.gguf_of import gguf_of
from tests.engines.test_conformance import Client
from worker.engines.llamacpp_impl import create
from worker.engines.options import EngineOptions
from worker.engines.token_bytes import TokenBytes

TEXT = "你好 👩‍🚀!"
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    clients: list[Client] = []

    async def serve(path: str | Path, **options: Any) -> Client:
        options = {"device": "cpu", "threads": 1, "slots": 2, **options}
        engine = create(EngineOptions(model_path=str(path), **options))
        clients.append(Client(engine, await asyncio.to_thread(engine.load)))
        engine.start(clients[-1].deliver)
        return clients[-1]

    yield serve
    for client in clients:
        await client.engine.stop()


@pytest.mark.model
async def test_characters_of_several_tokens_come_out_whole_with_all_their_tokens(serve: Serve) -> None:
    client = await serve(chat_weights(), max_model_len=256)
    forced: dict[str, Any] = {"structured": Structured("choice", [TEXT]), "max_tokens": 60, "logprobs": 0}
    answer = await client.answer("a", **forced)
    assert answer.text == TEXT
    assert all("\ufffd" not in text for text in answer.texts)
    assert answer.usage is not None
    assert len(answer.token_ids) == len(answer.logprobs) == answer.usage.completion_tokens > len(TEXT)
    said = await client.answer("said", kind="detokenize", payload={"tokens": answer.token_ids})
    assert said.result == {"prompt": TEXT}
    for tokens in range(0, len(answer.token_ids), 3):
        ids = answer.token_ids[:tokens]
        rest = await client.answer(f"from {tokens}", **forced, resume=Resume(ids, 0))
        assert (ids + rest.token_ids, rest.text) == (answer.token_ids, TEXT)


@pytest.mark.model
async def test_a_reply_may_end_within_a_character_and_its_tokens_count(serve: Serve) -> None:
    client = await serve(chat_weights(), max_model_len=256)
    forced: dict[str, Any] = {"structured": Structured("choice", [TEXT])}
    whole = await client.answer("whole", **forced, max_tokens=60)
    for most in range(1, len(whole.token_ids)):
        answer = await client.answer(f"{most}", **forced, max_tokens=most)
        assert answer.finish_reason == "length"
        assert TEXT.startswith(answer.text)
        assert "\ufffd" not in answer.text
        assert answer.usage is not None
        assert answer.usage.completion_tokens == most


def test_tokens_that_were_not_told_follow_from_their_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    tokens = LLTokenizer(tokenizer.backend_tokenizer.to_str(), n_vocab=size, eos_token=1)
    known = TokenBytes(tokens, size)
    for text in ("é", "你", "👩", "ab你"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert known.ids_before(ids[-1], text.encode(), len(ids) - 1) == ids[:-1]
    other = tokenizer.encode("o", add_special_tokens=False) * 2  # not as the tokenizer would have it, but so many
    assert tokens.decode_bytes(known.ids_before(other[0], b"xyo", 2)) == b"xy"
    assert len(known.ids_before(other[0], b"\xef\xbf\xbdo", 5)) == 5, "of what is no text, as many"


def vectors(embeddings: list[str] | None) -> NDArray[np.float32]:
    assert embeddings is not None
    return np.stack([np.frombuffer(base64.b64decode(one), dtype="<f4") for one in embeddings])


async def test_embeddings_are_those_of_the_model(serve: Serve, llama_for_vllm: Path, tmp_path: Path) -> None:
    file = gguf_of(llama_for_vllm, tmp_path / "mean.gguf", gguf.PoolingType.MEAN)
    client = await serve(file)
    texts = ["the quick brown fox", "stop"]
    answer = await client.answer("a", kind="embedding", payload={"inputs": texts})
    assert answer.error is None
    assert answer.usage is not None
    tokenizer = PreTrainedTokenizerFast.from_pretrained(llama_for_vllm)
    model = AutoModel.from_pretrained(llama_for_vllm, dtype=torch.float32).eval()
    for text, vector in zip(texts, vectors(answer.embeddings), strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        with torch.inference_mode():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=2e-3)
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    for kind, payload in (("chat", {"messages": []}), ("rerank", {"query": "a", "documents": ["b"]})):
        refused = await client.answer(kind, kind=kind, payload=payload)
        assert refused.error is not None
        assert refused.error.code == "unsupported_model"
    long = await client.answer("long", kind="embedding", payload={"inputs": ["fine", "the fox " * 4000]})
    assert long.error is not None
    assert (long.error.code, long.error.retryable) == ("context_length_exceeded", False)
    many = await client.answer("many", kind="embedding", payload={"inputs": [*texts, *texts, "fox"]})
    assert vectors(many.embeddings)[2:4] == pytest.approx(vectors(answer.embeddings), abs=2e-3)
    cut = await client.answer("cut", kind="embedding", payload={"inputs": texts, "dimensions": 8})
    assert cut.error is not None
    assert cut.error.param == "dimensions"


def test_a_file_that_is_cut_off_is_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(Path(chat_weights()).read_bytes()[:100_000])
    with pytest.raises(StartupError, match=r"^cannot read .*cut\.gguf: "):
        create(EngineOptions(model_path=str(file)))
