"""`python -m tests.fault.faulty_worker`: a worker whose echo engine fails in the way that FAULT names, once it has made
AFTER tokens. Everything else of it is the real worker."""

import os
import resource
import time
from pathlib import Path

from worker.__main__ import main
from worker.engines.base import Output
from worker.engines.echo_impl import EchoStepper, Sequence

FAULT = os.environ["FAULT"]
AFTER = int(os.environ["AFTER"])


class Faulty:
    """Stands in for `EchoStepper.step` and `_advance`; each fault but `crash` happens once."""

    def __init__(self) -> None:
        self.step = EchoStepper.step
        self.advance = EchoStepper._advance
        self.made = 0
        self.over = False
        self.mute: set[str] = set()

    def broken_step(self, stepper: EchoStepper) -> list[Output]:
        outputs = self.step(stepper)
        self.made += sum(len(output.token_ids) for output in outputs)
        if self.made >= AFTER and not self.over:
            self.over = True
            self.fail(stepper)
        return [output for output in outputs if output.id not in self.mute]

    def fail(self, stepper: EchoStepper) -> None:
        if FAULT == "raise":
            raise RuntimeError("the engine broke")
        if FAULT == "memory":
            run_out_of_memory()
        if FAULT == "silence":  # these are computed and never heard of again
            self.mute = {sequence.id for sequence in (*stepper._running, *stepper._waiting)}

    def broken_advance(self, stepper: EchoStepper, sequence: Sequence) -> Output:
        """A prompt that kills in mid-reply."""
        if FAULT == "crash" and "arsenic" in sequence.words and sequence.made >= AFTER:
            time.sleep(0.1)  # its tokens so far are on their way
            os._exit(134)
        return self.advance(stepper, sequence)


def run_out_of_memory() -> None:
    """As in a container whose memory ends."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, limits[1]))
    try:
        bytearray(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


if __name__ == "__main__":
    faulty = Faulty()
    EchoStepper.step = lambda stepper: faulty.broken_step(stepper)  # type: ignore[method-assign]
    EchoStepper._advance = lambda stepper, sequence: faulty.broken_advance(stepper, sequence)  # type: ignore[method-assign]
    raise SystemExit(main())
