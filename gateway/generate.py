"""From a validated request to jobs on the bus, and from their updates to one answer."""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from gateway.asked import Asked
from gateway.grammars import Grammars
from gateway.hub import Hub
from gateway.inflight import Mailbox, Update
from gateway.memory import MemoryBrake
from gateway.schemas.base import GenerationRequest
from gateway.schemas.chat import ChatCompletionRequest
from gateway.schemas.completion import CompletionRequest
from gateway.schemas.embedding import EmbeddingRequest
from registry.directory import Directory
from shared.errors import ContextLengthExceeded
from shared.messages import EMBEDDING_INPUTS_PER_JOB, INLINE_PAYLOAD_BYTES, Job, Kind, SamplingParams, Usage


class Answer:
    """One accepted request: its jobs, and the mailbox that their progress comes to. `close` it whatever happens."""

    def __init__(
        self, hub: Hub, id: str, model: str, jobs: Sequence[Job], choices_per_prompt: int, max_model_len: int = 0
    ) -> None:
        self.id = id
        self.model = model  # as the client wrote it, or of the alias that it wrote
        self.max_model_len = max_model_len
        self.created = int(time.time())
        self.choices = len(jobs)
        self.mailbox = Mailbox()
        self._jobs = [job.id for job in jobs]
        self._hub = hub
        self._per_prompt = choices_per_prompt
        self._usages: dict[int, Usage] = {}

    def close(self) -> None:
        """Frees whatever still runs for it. Sync and idempotent."""
        if not self.has_ended:
            if self.mailbox.has_failed:
                self._hub.cancel(self._jobs, "another job of its request failed")
            else:
                self._hub.cancel(self._jobs)

    @property
    def has_ended(self) -> bool:
        """Every choice has."""
        return len(self._usages) == self.choices

    async def updates(self) -> list[Update]:
        """What is new, or nothing after `mailbox.wake`. Raises the request's error, or ClientGone."""
        updates = await self.mailbox.get()
        for update in updates:
            if update.usage is not None:
                self._usages[update.index] = update.usage
        return updates

    def leave(self) -> None:
        """Its client did."""
        self.mailbox.close()
        self.close()

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object; choices of one prompt share it, so it counts once."""
        counted = [usage for index, usage in self._usages.items() if index % self._per_prompt == 0]
        prompt = sum(usage.prompt_tokens for usage in counted)
        completion = sum(usage.completion_tokens for usage in self._usages.values())
        reasoning = sum(usage.reasoning_tokens for usage in self._usages.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in counted)},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }


Opens = Callable[[Job], Awaitable[Answer]]  # stores what a durable job needs, before it is queued


class Generator:
    """Makes answers: resolves the name, draws a seed, cuts the request into jobs and enqueues them."""

    JOB_BYTES = 600  # of Redis's memory, besides the payload
    DURABLE_COPIES = 2  # of the payload: in the job that is kept, and as a response's input

    def __init__(
        self, hub: Hub, directory: Directory, brake: MemoryBrake, default_max_tokens: int | None = None
    ) -> None:
        self._hub = hub
        self._brake = brake
        self._directory = directory
        self._default_max_tokens = default_max_tokens
        self._grammars = Grammars()

    async def chat(
        self, body: ChatCompletionRequest, asked: Asked, prefix: str = "chatcmpl-", opens: Opens | None = None
    ) -> Answer:
        """`prefix`: of the answer's id. `opens`: makes the request durable."""
        await self._check_constraints(body)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        sampling = _sampling(body, body.limit or self._default_max_tokens, logprobs)
        id = f"{prefix}{asked.hex}"
        return await self._submit("chat", id, [body.payload()], sampling, asked, body.n or 1, opens)

    async def completion(self, body: CompletionRequest, asked: Asked) -> Answer:
        payloads = [{"prompt": prompt} for prompt in body.prompts]
        await self._check_constraints(body)
        chooses = body.candidates > (body.n or 1)  # the best, by their logprobs
        sampling = _sampling(body, body.limit, 0 if chooses and body.logprobs is None else body.logprobs, body.echo)
        id = f"cmpl-{asked.hex}"
        return await self._submit("completion", id, payloads, sampling, asked, body.candidates)

    async def _check_constraints(self, body: GenerationRequest) -> None:
        for structured in body.constraints():
            await self._grammars.check(structured)

    async def embedding(self, body: EmbeddingRequest, asked: Asked) -> Answer:
        inputs = body.inputs
        parts = [inputs[i : i + EMBEDDING_INPUTS_PER_JOB] for i in range(0, len(inputs), EMBEDDING_INPUTS_PER_JOB)]
        dimensions = {} if body.dimensions is None else {"dimensions": body.dimensions}
        payloads = [{"inputs": part, **dimensions} for part in parts]
        sampling = SamplingParams(seed=0)
        return await self._submit("embedding", f"embd-{asked.hex}", payloads, sampling, asked, 1)

    async def ask(self, kind: Kind, payloads: Sequence[dict[str, Any]], asked: Asked) -> Answer:
        """What is answered at once, without sampling."""
        return await self._submit(kind, f"{kind}-{asked.hex}", payloads, SamplingParams(seed=0), asked, 1)

    async def _submit(
        self,
        kind: Kind,
        id: str,
        payloads: Sequence[dict[str, Any]],
        sampling: SamplingParams,
        asked: Asked,
        n: int,
        opens: Opens | None = None,
    ) -> Answer:
        record = await self._directory.resolve(asked.model)
        _check_lengths(payloads, record.max_model_len)
        copies = n if asked.size <= INLINE_PAYLOAD_BYTES else 1
        if opens is not None:
            copies += self.DURABLE_COPIES
        self._brake.admit(asked.size * copies + len(payloads) * n * self.JOB_BYTES)
        deadline = int((time.time() + asked.deadline - time.monotonic()) * 1000)
        jobs = [
            Job(
                id=f"{id}-{index * n + choice}",
                request=id,
                model=record.model,
                kind=kind,
                payload=payload,
                sampling=sampling,
                gateway=self._hub.id,
                deadline=deadline,
                choice=choice,
                trace=asked.traceparent,
                logged=None if opens is None else 0,
            )
            for index, payload in enumerate(payloads)
            for choice in range(n)
        ]
        if opens is None:
            answer = Answer(self._hub, id, asked.model, jobs, n, record.max_model_len)
        else:
            answer = await opens(jobs[0])
        slots = sum(worker.slots for worker in self._directory.snapshot.workers.get(record.model, ()))
        await self._hub.submit(jobs, answer.mailbox, asked, max(1, slots))
        return answer


def _check_lengths(payloads: Sequence[dict[str, Any]], most: int) -> None:
    """Of token ids; text is counted by the worker, who alone knows its tokens. Raises ContextLengthExceeded."""
    for payload in payloads:
        param = next((name for name in ("prompt", "tokens") if name in payload), "input")
        for tokens in payload.get("inputs", [payload.get(param)]):
            if isinstance(tokens, list) and len(tokens) > most:
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {most} tokens. However, your {param} has {len(tokens)} "
                    "tokens. Please reduce its length.",
                    param=param,
                )


def _sampling(
    body: GenerationRequest, max_tokens: int | None, logprobs: int | None, echo: bool | None = None
) -> SamplingParams:
    def given(value: float | None, default: float) -> float:
        return default if value is None else value

    return SamplingParams(
        seed=secrets.randbits(63) if body.seed is None else body.seed & (2**64 - 1),
        seeded=body.seed is not None,
        max_tokens=max_tokens,
        temperature=given(body.temperature, 1.0),
        top_p=given(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),
        min_p=given(body.min_p, 0.0),
        stop=body.stops,
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        repetition_penalty=given(body.repetition_penalty, 1.0),
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        logprobs=logprobs,
        echo=bool(echo),
        structured=body.structured,
    )
