"""A reply's text, thoughts and tool calls come out once, also where another worker gave out the beginning."""

import itertools
import re

import pytest
from tokenizers import Tokenizer

from shared.messages import Progress, Resume, ToolCallDelta
from tests.unit.byte_level import trained
from worker.engines.detokenizer import Detokenizer, special_ids
from worker.engines.reply import Reply, Unsent
from worker.engines.text import StopMatcher


class Parser:
    """<think>…<end> is a thought, {name:arguments} a call; the rest is text. Gives out character by character."""

    def __init__(self, keep: frozenset[int]) -> None:
        self.keep = keep
        self.is_reasoning = False
        self._text = ""
        self._calls = 0
        self._in_call = False

    def push(self, text: str) -> Progress:
        made = Progress()
        self._text += text
        while self._text and not (self._text[0] in "<{" and not re.match(r"<think>|<end>|\{\w+:", self._text)):
            made.add(self._next())
        return made

    def _next(self) -> Progress:
        if marker := re.match(r"<think>|<end>", self._text):
            self._text = self._text[marker.end() :]
            self.is_reasoning = marker[0] == "<think>"
            return Progress()
        if call := re.match(r"\{(\w+):", self._text):
            self._text, self._in_call = self._text[call.end() :], True
            self._calls += 1
            return Progress(tool_calls=[ToolCallDelta(self._calls - 1, call[1])])
        letter, self._text = self._text[0], self._text[1:]
        if self._in_call:
            self._in_call = letter != "}"
            return Progress(tool_calls=[ToolCallDelta(self._calls - 1, "", letter)] if letter != "}" else [])
        return Progress(reasoning=letter) if self.is_reasoning else Progress(text=letter)

    def finish(self) -> Progress:
        return Progress(text=self._text)


TEXT = "<think>the cat<end>so: {look:the hat}{run:}{sit:mat} and that"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained("the cat and that hat, so the mat look", ["<think>", "<end>", "<pad>"], 300)


def reply_of(tokenizer: Tokenizer, resume: Resume | None, stops: tuple[str, ...] = ()) -> Reply:
    keep = frozenset(tokenizer.token_to_id(token) for token in ("<think>", "<end>"))
    hidden = special_ids(tokenizer) - keep
    return Reply(Detokenizer(tokenizer, (), hidden), StopMatcher(stops), Parser(keep), Unsent(resume))


def test_each_channel_has_its_own_text(tokenizer: Tokenizer) -> None:
    reply = reply_of(tokenizer, None)
    for token_id in tokenizer.encode("<pad>" + TEXT).ids:
        reply.push(token_id)
    reply.finish()
    made = reply.take()
    assert (made.text, made.reasoning) == ("so:  and that", "the cat")
    assert made.tool_calls == [
        ToolCallDelta(0, "look", "the hat"),
        ToolCallDelta(1, "run"),
        ToolCallDelta(2, "sit", "mat"),
    ]
    assert reply.reasoning_tokens == len(tokenizer.encode("<think>the cat").ids)
    assert not reply.take().is_something


@pytest.mark.parametrize("stops", [(), ("{sit",)])
def test_what_was_sent_is_not_sent_again_wherever_it_was_cut(tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
    ids = tokenizer.encode(TEXT).ids
    whole = reply_of(tokenizer, None, stops)
    pieces = []
    for token_id in ids:
        whole.push(token_id)
        pieces.append(whole.take())
    whole.finish()
    pieces.append(whole.take())
    for cut, fewer in itertools.product(range(len(ids) + 1), (0, 1)):
        sent = Progress()
        for piece in pieces[:cut]:
            sent.add(piece)
        lost = sent.text[len(sent.text) - fewer :] if sent.text else ""  # a character that the gateway never got
        sent.text = sent.text[: len(sent.text) - len(lost)]
        arguments = sum(len(call.arguments) for call in sent.tool_calls)
        calls = len(sent.tool_calls)
        rest = reply_of(tokenizer, Resume(ids[:cut], len(sent.text), len(sent.reasoning), calls, arguments), stops)
        for token_id in ids:
            rest.push(token_id)
        rest.finish()
        sent.add(rest.take())
        everything = Progress()
        for piece in pieces:
            everything.add(piece)
        assert sent == everything, cut
        assert rest.stop == (stops[0] if stops else None)
