"""What is to be thought of an attempt: good, to be made again, or a violation."""

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from tests.fault.chaos.attempt import Attempt, Ended
from tests.fault.chaos.ledger import Ledger
from tests.fault.chaos.mix import Request

REFUSALS = {(429, "queue_full"), (503, "bus_unavailable"), (503, "model_unavailable"), (503, "shutting_down")}
REFUSED_WITHIN_S = 30.0  # later it was accepted, and then given up (a job that no worker takes is, after 60 s)
BURIED = (500, "worker_lost")


class Verdict(Enum):
    FINISHED = "finished"
    LEFT = "left by their client"
    BURIED = "poison buried"
    FAILED = "failed"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    CUT = "cut by a gateway's death"

    @property
    def to_be_sent_again(self) -> bool:
        return self in (Verdict.REFUSED, Verdict.UNREACHABLE, Verdict.CUT)


@dataclass(slots=True)
class Judge:
    ledger: Ledger

    def verdict(self, attempt: Attempt, gateway_was_killed: bool) -> Verdict:
        self._check_texts(attempt)
        if attempt.ended is Ended.UNREACHABLE:
            return Verdict.UNREACHABLE
        if attempt.ended is Ended.LEFT:
            return Verdict.LEFT
        if attempt.ended is not Ended.WHOLE:
            if gateway_was_killed:
                return Verdict.CUT
            return self._silent(attempt)
        if attempt.error is not None:
            return self._error(attempt, attempt.error)
        if not attempt.done:
            return Verdict.CUT if gateway_was_killed else self._silent(attempt)
        self._check_end(attempt)
        return Verdict.FINISHED

    def _silent(self, attempt: Attempt) -> Verdict:
        how = f"{attempt.ended.value}; {attempt.tokens_came} tokens in {attempt.seconds:.1f} s"
        self._violate("silent end", attempt, f"a finish or an error event, came: {how}")
        return Verdict.FAILED

    def _error(self, attempt: Attempt, error: dict[str, object]) -> Verdict:
        told = (attempt.status, str(error.get("code")))
        if told in REFUSALS and attempt.seconds < REFUSED_WITHIN_S:
            if "retry-after" not in attempt.headers:
                self._violate("wrong refusal", attempt, f"a Retry-After with {told}")
            return Verdict.REFUSED
        if attempt.status == 404:
            self._violate("wrong refusal", attempt, f"503 for a model that is served, came {told}")
            return Verdict.REFUSED
        if attempt.request.poison and told == BURIED:
            return Verdict.BURIED
        when = f"after {attempt.tokens_came} tokens and {attempt.seconds:.1f} s"
        self._violate("error event (other)", attempt, f"a finish, came {when}: {told}, {error.get('message')}")
        return Verdict.FAILED

    def _check_texts(self, attempt: Attempt) -> None:
        """What came is the beginning of what must come, however the attempt ended."""
        request = attempt.request
        for index, text in attempt.texts.items():
            if request.text.startswith(text) and index < request.choices:
                continue
            came = text.split()
            surplus = Counter(came) - Counter(request.tokens)
            twice = sum(times for token, times in surplus.items() if token in request.tokens)
            where = next((i for i, token in enumerate(came) if token not in request.tokens[i : i + 1]), len(came))
            wanted, got = request.tokens[where : where + 4], came[where : where + 4]
            kind = "duplicated token" if twice else "wrong text"
            self._violate(kind, attempt, f"choice {index}, token {where}: {wanted}, came {got}", twice or 1)

    def _check_end(self, attempt: Attempt) -> None:
        request = attempt.request
        if request.poison:
            self._violate("wrong finish or usage", attempt, "a burial, came a finish")
            return
        for index in range(request.choices):
            if len(attempt.texts[index]) < len(request.text):
                wanted = f"choice {index}: {len(request.text)} characters"
                self._violate("wrong text", attempt, f"{wanted}, came {len(attempt.texts[index])}")
        reasons = {index: attempt.reasons[index] for index in range(request.choices)}
        if any(reason != [request.reason] for reason in reasons.values()):
            self._violate("wrong finish or usage", attempt, f"{request.reason} once a choice, came {reasons}")
        usages = [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in attempt.usages]
        if usages != [request.usage]:
            self._violate("wrong finish or usage", attempt, f"usage {request.usage} once, came {usages}")
        if attempt.after_done:
            self._violate("wrong finish or usage", attempt, f"nothing after [DONE], came {attempt.after_done[:80]!r}")

    def _violate(self, kind: str, attempt: Attempt, line: str, times: int = 1) -> None:
        request = attempt.request
        self.ledger.violate(kind, f"request {request.number} ({describe(request)}): expected {line}", times)


def describe(request: Request) -> str:
    shape = "stream" if request.streams else "whole"
    return f"{shape}, n={request.choices}, {len(request.tokens)} tokens{', poison' if request.poison else ''}"
