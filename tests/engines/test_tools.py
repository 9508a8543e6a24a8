"""A real model whose template knows no tools calls them: greedily, under the grammar, read back by the parser."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import AutoTokenizer

from shared.messages import Progress, SamplingParams
from tests.engines.driving import Reference, Stepping
from tests.engines.test_real_models import SMOLLM, package_file
from worker.engines.base import EngineRequest
from worker.engines.prompts import Prompt

pytestmark = pytest.mark.model

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"],
        },
    },
    {"name": "get_time", "description": "The time of day."},
]
QUESTION = {"role": "user", "content": "What is the weather in Paris, in celsius?"}


class Model:
    def __init__(self, engine: Stepping, reference: Reference) -> None:
        path = package_file(*SMOLLM)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        self._engine, self._model, self._tokenizer = engine, reference.model, tokenizer.backend_tokenizer
        self._ll = from_tokenizer(tokenizer, n_vocab=self._model.config.vocab_size)
        self._eos = tokenizer.eos_token_id

    def prompt(self, **payload: Any) -> Prompt:
        request = EngineRequest("r", "chat", {"messages": [QUESTION], **payload}, SamplingParams(seed=0))
        prompt: Prompt = self._engine.generation._frontend._prompts.read(request)
        return prompt

    @torch.inference_mode()
    def reply(self, prompt: Prompt, tokens: int = 120) -> Progress:
        matcher = LLMatcher(self._ll, prompt.grammar) if prompt.grammar is not None else None
        assert prompt.parser is not None
        ids, past, made = torch.tensor([prompt.ids]), None, []
        while len(made) < tokens and not (matcher is not None and matcher.is_stopped()):
            out = self._model(ids, past_key_values=past, use_cache=True)
            logits, past = out.logits[:, -1], out.past_key_values
            if matcher is not None:
                allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8) > 0
                logits[0, ~allowed] = -torch.inf
            token = int(logits.argmax())
            if token == self._eos:
                break
            assert matcher is None or matcher.consume_token(token), matcher.get_error()
            made.append(token)
            ids = torch.tensor([[token]])
        progress = prompt.parser.push(self._tokenizer.decode(made))
        progress.add(prompt.parser.finish())
        return progress


@pytest.fixture(scope="module")
def model(load: Callable[..., Stepping]) -> Model:
    engine = load(package_file(*SMOLLM), dtype="float32")
    return Model(engine, Reference.beside(engine))


def test_a_forced_call_has_valid_arguments(model: Model) -> None:
    prompt = model.prompt(tools=TOOLS, tool_choice={"mode": "required", "names": ["get_weather"]})
    made = model.reply(prompt)
    (call,) = made.tool_calls
    arguments = json.loads(call.arguments)
    assert (call.name, made.text) == ("get_weather", "")
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")


def test_any_of_the_tools_can_be_forced(model: Model) -> None:
    prompt = model.prompt(tools=TOOLS, tool_choice={"mode": "required", "names": None}, parallel_tool_calls=False)
    (call,) = model.reply(prompt).tool_calls
    assert call.name in ("get_weather", "get_time")
    assert isinstance(json.loads(call.arguments), dict)


def test_a_reply_that_may_call_strict_tools_is_text_or_a_valid_call(model: Model) -> None:
    tools = [{**tool, "strict": True} for tool in TOOLS]
    made = model.reply(model.prompt(tools=tools, tool_choice={"mode": "auto", "names": None}))
    assert made.text or made.tool_calls
    for call in made.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
