"""`tokenbus COMMAND`: reads the flags, handles the signals, turns errors into one line and an exit code."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence

from shared import __version__
from shared.errors import StartupError
from shared.logging import set_up_logging

USAGE = """\
usage: tokenbus COMMAND [flags]

  up            start a whole stack on this machine: Redis, models, gateway
  run MODEL     chat with a model in the terminal
  ps            who is alive on the bus
  explain ID    what happened to a request
  drain WORKER  send a worker home; its streams go on elsewhere
  dead [JOB]    jobs that were given up: list, show, run again, remove

`tokenbus COMMAND --help` lists its flags; every flag is also a variable TOKENBUS_FLAG.
The parts alone: python -m gateway, python -m worker, python -m registry."""


def up(argv: Sequence[str]) -> int:
    if os.name == "nt":
        raise StartupError("`up` needs Linux or macOS; on Windows use WSL or docker compose")
    import platformdirs
    from rich.console import Console

    from cli.progress import Progress
    from cli.supervisor import ChildFailed, Supervisor
    from cli.up import UpSettings, open_bus, run
    from cli.valkey import is_taken

    settings = UpSettings.read("tokenbus up", argv)
    set_up_logging("warning")  # the level that was asked for is the children's
    if is_taken(settings.host, settings.port):
        raise StartupError(f"port {settings.port} is in use; choose another one with --port")
    logs = platformdirs.user_log_path("tokenbus") / f"port-{settings.port}"
    logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    progress = Progress(Console(stderr=True))
    supervisor = Supervisor(progress.say)
    try:
        with open_bus(settings, logs) as bus:
            stack = run(settings, bus, logs, supervisor, progress)
            asyncio.run(until_signalled(stack, again=supervisor.kill))
    except ChildFailed as error:
        print(f"tokenbus up: {error}", file=sys.stderr)
        return 1
    return 0


async def until_signalled(work: Coroutine[None, None, None], again: Callable[[], None]) -> None:
    """Runs `work`, which the first SIGINT, SIGTERM or SIGHUP cancels; any further one calls `again`."""
    task = asyncio.create_task(work, name="work")

    def on_signal() -> None:
        if task.cancelling():
            again()
        else:
            task.cancel()

    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if name != signal.SIGHUP or signal.getsignal(name) != signal.SIG_IGN:  # ignored under nohup
            asyncio.get_running_loop().add_signal_handler(name, on_signal)
    try:
        await task
    except asyncio.CancelledError:
        return


def run_chat(argv: Sequence[str]) -> int:
    from cli.chat import RunSettings, run

    return run(RunSettings.read("tokenbus run", argv))


def ps(argv: Sequence[str]) -> int:
    from cli.ps import PsSettings, run

    asyncio.run(run(PsSettings.read("tokenbus ps", argv)))
    return 0


def explain(argv: Sequence[str]) -> int:
    from cli.explain import ExplainSettings, run

    asyncio.run(run(ExplainSettings.read("tokenbus explain", argv)))
    return 0


def drain(argv: Sequence[str]) -> int:
    from cli.drain import DrainSettings, run

    return asyncio.run(run(DrainSettings.read("tokenbus drain", argv)))


def dead(argv: Sequence[str]) -> int:
    from cli.dead import DeadSettings, run

    return asyncio.run(run(DeadSettings.read("tokenbus dead", argv)))


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "up": up,
    "run": run_chat,
    "ps": ps,
    "explain": explain,
    "drain": drain,
    "dead": dead,
}


def main() -> int:
    command, *argv = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if command in ("-V", "--version", "version"):
        print(f"tokenbus {__version__}")
        return 0
    try:
        if command not in COMMANDS:
            raise StartupError(f"there is no command '{command}'; there are {', '.join(COMMANDS)}")
        return COMMANDS[command](argv)
    except StartupError as error:
        print(f"tokenbus: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
