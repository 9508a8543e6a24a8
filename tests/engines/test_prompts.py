"""What is said to a model: each kind of chat template with tools, results, thoughts, and what it does not take."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from shared.errors import InvalidRequest, UnsupportedModel, UnsupportedParameter
from shared.messages import Kind, SamplingParams, Structured
from tests.engines import chat_templates
from tests.engines.conftest import TEMPLATE
from worker.engines.base import EngineRequest, Output
from worker.engines.prompts import Prompt, PromptReader

TOOL = {
    "name": "get_weather",
    "description": "of a place",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
USER = {"role": "user", "content": "Rain?"}
CALL_ID = "call_0123456789abcdef01234567"
CALL = {
    "id": CALL_ID,
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": CALL_ID, "content": "sun and wind"}
AUTO = {"tools": [TOOL], "tool_choice": {"mode": "auto", "names": None}}
ALL = {
    name: getattr(chat_templates, name.upper()) for name in ("qwen", "llama", "mistral", "deepseek", "r1", "gemma")
} | {"plain": TEMPLATE}


class Said:
    """A prompt reader and the texts of its prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: str, **options: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._tokenizer.chat_template = template
        self.reader = PromptReader(self._tokenizer, len(self._tokenizer), 100_000, **options)

    def read(self, messages: list[dict[str, Any]], sampling: SamplingParams | None = None, **payload: Any) -> Prompt:
        return self.reader.read(self._request("chat", {"messages": messages, **payload}, sampling))

    def text(self, messages: list[dict[str, Any]], **payload: Any) -> str:
        ids = self.read(messages, **payload).ids
        return str(self._tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))

    def answer(self, kind: Kind, **payload: Any) -> Output | None:
        return self.reader.answer(self._request(kind, payload))

    def _request(self, kind: Kind, payload: Any, sampling: SamplingParams | None = None) -> EngineRequest:
        return EngineRequest("r", kind, payload, sampling or SamplingParams(seed=0))


@pytest.fixture(scope="module")
def say(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Said]:
    return lambda template, **options: Said(tokenizer, template, **options)


Say = Callable[..., Said]


@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
def test_tools_calls_and_results_reach_every_model(say: Say, template: str) -> None:
    text = say(template).text([USER, CALLING, RESULT], **AUTO)
    assert "get_weather" in text.split("Rain?")[0] + text.split("Rain?")[1][:0] or "[AVAILABLE_TOOLS]" in text
    assert "of a place" in text
    after = text[text.index("Rain?") :]
    assert after.index("get_weather") < after.index("Rome") < after.index("sun and wind")


@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
def test_no_tools_no_word_of_them(say: Say, template: str) -> None:
    said = say(template)
    text = said.text([USER])
    assert "tool" not in text
    assert "function" not in text


def test_a_template_that_knows_no_tools_gets_our_words_and_calls_as_text(say: Say) -> None:
    text = say(TEMPLATE).text([{"role": "system", "content": "Be kind."}, USER, CALLING, RESULT], **AUTO)
    system, user, assistant, result, _ = text.split("<|end|>\n")
    assert system.startswith("<|begin|>system\nBe kind.\n\nYou can call these functions")
    assert json.dumps(TOOL["parameters"]) in system
    assert "<tool_call>\n" in system
    assert user == "<|begin|>user\nRain?"
    assert assistant == (
        '<|begin|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    )
    assert result == "<|begin|>user\n<tool_response>\nsun and wind\n</tool_response>"


def test_where_there_is_no_system_the_user_tells_of_the_tools(say: Say) -> None:
    text = say(chat_templates.GEMMA).text([USER], **AUTO)
    assert text.startswith("<turn>user\nYou can call these functions")
    assert "\n\nRain?</turn>" in text


def test_a_dialect_of_the_template_s_own_that_shows_no_tools_is_described(say: Say) -> None:
    text = say(chat_templates.DEEPSEEK).text([USER, CALLING, RESULT], **AUTO)
    assert "<｜tool▁call▁begin｜>function-name<｜tool▁sep｜>" in text.split("<｜User｜>")[0]
    assert '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>' in text


def test_mistral_gets_ids_of_nine_characters_the_same_for_call_and_result(say: Say) -> None:
    text = say(chat_templates.MISTRAL).text([USER, CALLING, RESULT], **AUTO)
    id = text.split('"id": "')[1].split('"')[0]
    assert len(id) == 9
    assert f"[TOOL_RESULTS]{id}: sun and wind" in text


def test_arguments_that_are_no_object_are_passed_on_as_they_are(say: Say) -> None:
    call = {**CALL, "function": {"name": "get_weather", "arguments": '{"city": "Ro'}}
    assert '{\\"city\\": \\"Ro' in say(chat_templates.QWEN).text([USER, {**CALLING, "tool_calls": [call]}], **AUTO)


def test_a_result_carries_the_name_of_the_function(say: Say) -> None:
    template = chat_templates.QWEN.replace("<tool_response>\n", "<tool_response name={{ m.name }}>\n")
    assert "<tool_response name=get_weather>" in say(template).text([USER, CALLING, RESULT])
    function = {"role": "function", "name": "get_time", "content": "noon"}
    assert "<tool_response name=get_time>\nnoon" in say(template).text([USER, function])


def test_the_developer_is_the_system_where_a_template_knows_no_developer(say: Say) -> None:
    assert say(TEMPLATE).text([{"role": "developer", "content": "Be kind."}, USER]).startswith("<|begin|>system")


def test_what_a_template_refuses_is_the_request_s_fault(say: Say) -> None:
    for template, messages in (
        (chat_templates.GEMMA, [{"role": "system", "content": "x"}, USER]),
        (chat_templates.LLAMA, [USER, {**CALLING, "tool_calls": [CALL, CALL]}]),
        ("{{ messages[0].content + 1 }}", [USER]),
        ("{{ 1 / 0 }}", [USER]),
    ):
        with pytest.raises(InvalidRequest, match="chat template refuses") as caught:
            say(template).read(messages)
        assert caught.value.param == "messages"


def test_variables_reach_the_template_but_not_those_that_are_ours(say: Say) -> None:
    said = say("{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert said.text([USER], template={"mood": "gay ", "unknown": 1}) == "gay Rain?"
    for name in ("messages", "tools", "tokenize", "chat_template", "add_generation_prompt", "return_dict", "self"):
        with pytest.raises(InvalidRequest, match=f"'{name}'") as caught:
            said.read([USER], template={name: 1})
        assert caught.value.param == "chat_template_kwargs"


def test_a_final_message_is_continued(say: Say) -> None:
    messages = [USER, {"role": "assistant", "content": "It will"}]
    assert say(TEMPLATE).text(messages, continue_final_message=True).endswith("<|begin|>assistant\nIt will")
    assert say(TEMPLATE).text(messages, add_generation_prompt=False).endswith("It will<|end|>\n")
    assert say(TEMPLATE).text([USER]).endswith("<|begin|>assistant\n")


@pytest.mark.parametrize(
    ("template", "effort", "end"),
    [
        ("QWEN", None, "assistant\n"),
        ("QWEN", "none", "<think>\n\n</think>\n\n"),
        ("QWEN", "high", "assistant\n"),
        ("DEEPSEEK", None, "</think>"),
        ("DEEPSEEK", "low", "<think>"),
        ("EFFORT", "high", "Reasoning: high\nuser: Rain?\n"),
        ("EFFORT", None, "Reasoning: medium\nuser: Rain?\n"),
        ("GEMMA", "none", "model\n"),
    ],
)
def test_the_effort_turns_the_template_s_switch(say: Say, template: str, effort: str | None, end: str) -> None:
    given = {} if effort is None else {"reasoning_effort": effort}
    assert say(getattr(chat_templates, template)).text([USER], **given).endswith(end)


def test_an_effort_without_a_switch_is_refused(say: Say) -> None:
    with pytest.raises(InvalidRequest) as caught:
        say(chat_templates.GEMMA).read([USER], reasoning_effort="high")
    assert caught.value.param == "reasoning_effort"


@pytest.mark.parametrize(
    ("template", "payload", "reply", "reasoning", "text"),
    [
        ("QWEN", {}, "<think>\nHm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("QWEN", {}, "Yes.", "", "Yes."),
        ("R1", {}, "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
        ("R1", {}, "Hm.", "Hm.", ""),
        ("DEEPSEEK", {"reasoning_effort": "high"}, "Hm.</think>Yes.", "Hm.", "Yes."),
        ("R1", {"content": "What does <think>\n"}, "Hm.</think>Yes.", "Hm.", "Yes."),
        ("QWEN", {"content": "What is <think>"}, "Yes.", "", "Yes."),
    ],
)
def test_thoughts_begin_where_the_prompt_leaves_off(
    say: Say, template: str, payload: dict[str, Any], reply: str, reasoning: str, text: str
) -> None:
    messages = [{"role": "user", "content": payload.get("content", "Rain?")}]
    options = {name: value for name, value in payload.items() if name != "content"}
    parser = say(getattr(chat_templates, template)).read(messages, **options).parser
    assert parser is not None
    made = parser.push(reply)
    made.add(parser.finish())
    assert (made.reasoning, made.text) == (reasoning, text)


def test_a_reply_that_goes_on_within_thoughts_begins_with_them(say: Say) -> None:
    said = say(chat_templates.R1.replace(".split('</think>')[-1]", "") + "{# </think> #}")
    final = {"role": "assistant", "content": "<think>\nHm, "}
    parser = said.read([USER, final], continue_final_message=True).parser
    assert parser is not None
    assert parser.push("so.</think>Yes").reasoning == "so."
    final = {"role": "assistant", "content": "<think>\nHm.</think>\n\nIt "}
    assert said.read([USER, final], continue_final_message=True).parser is None


@pytest.mark.parametrize(
    ("template", "payload"),
    [("GEMMA", {}), ("plain", {}), ("DEEPSEEK", {}), ("QWEN", {"reasoning_effort": "none"})],
)
def test_a_chat_without_tools_and_thoughts_costs_nothing(say: Say, template: str, payload: dict[str, Any]) -> None:
    prompt = say(ALL.get(template) or getattr(chat_templates, template)).read([USER], **payload)
    assert (prompt.parser, prompt.grammar) == (None, None)


def test_tools_that_need_not_be_called_need_no_grammar_but_a_parser(say: Say) -> None:
    said = say(chat_templates.QWEN)
    assert said.read([USER], **AUTO).grammar is None
    assert said.read([USER], **AUTO).parser is not None
    strict = {**AUTO, "tools": [{**TOOL, "strict": True}]}
    required = {**AUTO, "tool_choice": {"mode": "required", "names": None}}
    for payload in (strict, required, {**AUTO, "parallel_tool_calls": False}):
        assert said.read([USER], **payload).grammar is not None


def test_a_structured_reply_alone_is_its_own_grammar(say: Say) -> None:
    sampling = SamplingParams(seed=0, structured=Structured("regex", "a+"))
    plain = say(TEMPLATE).read([USER], sampling).grammar
    assert plain is not None
    thinking = say(chat_templates.QWEN).read([USER], sampling).grammar
    assert thinking is not None
    assert [grammar.get("name") for grammar in json.loads(thinking)["grammars"]] == [None, "structured"]


def test_the_named_dialect_counts_and_none_refuses_tools(say: Say) -> None:
    assert "<tool_call>" in say(TEMPLATE, tool_call_parser="hermes").text([USER], **AUTO)
    assert "[TOOL_CALLS]" in say(TEMPLATE, tool_call_parser="mistral").text([USER], **AUTO)
    with pytest.raises(UnsupportedParameter) as caught:
        say(TEMPLATE, tool_call_parser="none").read([USER], **AUTO)
    assert caught.value.param == "tools"
    assert say(chat_templates.QWEN, reasoning_parser="none").read([USER]).parser is None
    assert say(TEMPLATE, reasoning_parser="think").read([USER]).parser is not None


def test_text_is_tokenized_and_tokens_are_detokenized(say: Say) -> None:
    said = say(TEMPLATE)
    output = said.answer("tokenize", prompt="the quick é", add_special_tokens=False)
    assert output is not None
    assert output.result is not None
    assert len(output.result["token_strs"]) == len(output.result["tokens"])
    assert output.usage is not None
    assert output.usage.prompt_tokens == len(output.result["tokens"])
    assert output.finish_reason == "stop"
    back = said.answer("detokenize", tokens=output.result["tokens"])
    assert back is not None
    assert back.result == {"prompt": "the quick é"}


def test_a_chat_is_tokenized_as_it_would_be_read(say: Say) -> None:
    said = say(TEMPLATE)
    output = said.answer("tokenize", messages=[USER], add_special_tokens=False, **AUTO)
    assert output is not None
    assert output.result is not None
    assert output.result["tokens"] == said.read([USER], **AUTO).ids


@pytest.mark.parametrize("tokens", [[-1], [384], [2**40], [True], ["a"], "a", None])
def test_tokens_outside_the_vocabulary_are_refused(say: Say, tokens: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        say(TEMPLATE).answer("detokenize", tokens=tokens)
    assert caught.value.param == "tokens"


def test_a_generation_model_makes_no_embeddings(say: Say) -> None:
    said = say(TEMPLATE)
    assert said.answer("embedding", inputs=["a"]) is None
    with pytest.raises(UnsupportedModel):
        said.reader.read(said._request("embedding", {"inputs": ["a"]}))
