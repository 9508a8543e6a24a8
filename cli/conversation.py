"""What a chat remembers: a system prompt and its last turns."""

from collections import deque
from dataclasses import dataclass

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: str


class Conversation:
    """Only answered questions are kept, so a failed one leaves no trace."""

    def __init__(self, system: str = "", max_turns: int = 8) -> None:
        self.system = system
        self.turns: deque[Turn] = deque(maxlen=max_turns)

    def ask(self, question: str) -> list[Message]:
        """The messages to send: system prompt, remembered turns, the question."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return [*messages, {"role": "user", "content": question}]

    def add(self, question: str, answer: str) -> None:
        self.turns.append(Turn(question, answer))

    def reset(self) -> None:
        """Forgets the turns; the system prompt stays."""
        self.turns.clear()
