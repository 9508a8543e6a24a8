"""`tokenbus run MODEL`: a chat in the terminal, or line by line from a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

from pydantic import Field
from pydantic_settings import CliPositionalArg, CliSuppress

from cli.chat_client import ChatClient, ChatError
from cli.conversation import Conversation
from shared.errors import StartupError
from shared.settings import ProcessSettings

HELP = """\
/reset          forget the conversation (the system prompt stays)
/history        show what is remembered
/system [TEXT]  set the system prompt; without TEXT show it
/quit           leave (or Ctrl-D)
Ctrl-C          stop the answer"""


class RunSettings(ProcessSettings):
    """Chat with a model: one question a line, the answer streams. /help lists what else can be typed."""

    model: CliPositionalArg[str] = Field(description="a name of `tokenbus ps`")
    base_url: str = Field("http://127.0.0.1:8000/v1", description="address of the gateway, or any OpenAI API")
    api_key: str | None = Field(None, description="better by TOKENBUS_API_KEY, since flags show in ps")
    system: str = Field("", description="system prompt")
    max_history_turns: int = Field(8, ge=0, description="turns that are sent along with a question")
    temperature: float = Field(0.7, ge=0, description="0 is greedy")
    max_tokens: int | None = Field(None, gt=0, description="limit of an answer; default: the server's")

    redis_url: CliSuppress[str] = ""
    namespace: CliSuppress[str] = ""
    log_level: CliSuppress[str] = ""

    def options(self) -> dict[str, float]:
        options = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in options.items() if value is not None}


def run(settings: RunSettings) -> int:
    """1 if a question failed and nobody was there to see it."""
    terminal = sys.stdin.isatty()
    with ChatClient(settings.base_url, settings.api_key, settings.model, settings.options()) as client:
        require_model(client)
        chat = Chat(client, Conversation(settings.system, settings.max_history_turns))
        if terminal:
            print(f"{settings.model} at {settings.base_url}; /help")
        for line in typed() if terminal else sys.stdin:
            if not chat.take(line.strip()):
                break
    return 1 if chat.failures and not terminal else 0


def require_model(client: ChatClient) -> None:
    try:
        names = client.models()
    except ChatError as error:
        raise StartupError(str(error)) from None
    if client.model not in names:
        there = ", ".join(names) or "none at the moment"
        raise StartupError(f"there is no model '{client.model}'; there are: {there}")


def typed() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() its line editing)
    while True:
        try:
            yield input(">>> ")
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves")
        except EOFError:
            print()
            return


class Chat:
    """What is typed, and what happens then."""

    def __init__(self, client: ChatClient, conversation: Conversation) -> None:
        self.failures = 0
        self._client = client
        self._conversation = conversation
        self._commands: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/history": self._show_history,
            "/system": self._set_system,
            "/help": lambda _: print(HELP),
        }

    def take(self, line: str) -> bool:
        """False when the user leaves."""
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit", "/bye"):
            return False
        if command in self._commands:
            self._commands[command](rest.strip())
        elif command.startswith("/"):
            print(f"there is no {command}; /help lists what there is", file=sys.stderr)
        elif line:
            self._ask(line)
        return True

    def _ask(self, question: str) -> None:
        pieces: list[str] = []
        try:
            with closing(self._client.stream(self._conversation.ask(question))) as stream:
                for piece in stream:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except ChatError as error:
            self.failures += 1
            print(f"\nerror: {error}" if pieces else f"error: {error}", file=sys.stderr, flush=True)
            return
        print(flush=True)
        if pieces:
            self._conversation.add(question, "".join(pieces))

    def _reset(self, _: str) -> None:
        self._conversation.reset()

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = text
        else:
            print(self._conversation.system or "(no system prompt)")

    def _show_history(self, _: str) -> None:
        for message in self._conversation.ask("")[:-1]:
            print(f"{message['role']}: {message['content']}")
