"""What a sequence's tokens say: text, thoughts and tool calls, as far as the client does not have them yet."""

from shared.messages import Progress, Resume, ToolCallDelta, add_calls
from worker.engines.detokenizer import Detokenizer
from worker.engines.prompts import OutputParser
from worker.engines.text import StopMatcher


class Unsent:
    """Gathers what is made, less what a resumed sequence's client got before, channel by channel."""

    def __init__(self, resume: Resume | None) -> None:
        self._made = Progress()
        self._text = resume.chars_sent if resume else 0
        self._reasoning = resume.reasoning_sent if resume else 0
        self._calls = resume.calls_sent if resume else 0
        self._arguments = resume.arguments_sent if resume else 0

    def add(self, made: Progress) -> None:
        self._text, text = _cut(self._text, made.text)
        self._reasoning, reasoning = _cut(self._reasoning, made.reasoning)
        self._made.text += text
        self._made.reasoning += reasoning
        if made.tool_calls:
            add_calls(self._made.tool_calls, [call for call in map(self._cut_call, made.tool_calls) if call])

    def _cut_call(self, call: ToolCallDelta) -> ToolCallDelta | None:
        name = call.name
        if name and self._calls:
            self._calls -= 1
            name = ""
        self._arguments, arguments = _cut(self._arguments, call.arguments)
        return ToolCallDelta(call.index, name, arguments) if name or arguments else None

    def take(self) -> Progress:
        made, self._made = self._made, Progress()
        return made


def _cut(sent: int, text: str) -> tuple[int, str]:
    """What is left of the count, and of the text."""
    known = min(sent, len(text))
    return sent - known, text[known:]


class Reply:
    """Tokens go in one by one, and what they say comes out: detokenized, cut at a stop string, parsed."""

    def __init__(
        self, detokenizer: Detokenizer, stops: StopMatcher, parser: OutputParser | None, unsent: Unsent
    ) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._parser = parser
        self._unsent = unsent
        self.reasoning_tokens = 0

    @property
    def stop(self) -> str | None:
        """The stop string that was met."""
        return self._stops.matched

    def push(self, token_id: int) -> None:
        self._read(self._stops.push(self._detokenizer.push(token_id)))
        if self._parser is not None and self._parser.is_reasoning:
            self.reasoning_tokens += 1

    def finish(self) -> None:
        """What was held back comes out: nothing more follows."""
        self._read(self._stops.flush())
        if self._parser is not None:
            self._unsent.add(self._parser.finish())

    def take(self) -> Progress:
        """What came out since the last call."""
        return self._unsent.take()

    def _read(self, text: str) -> None:
        if text:
            self._unsent.add(Progress(text=text) if self._parser is None else self._parser.push(text))
