"""Drives a Stepper by hand, step by step, and makes the reference that its tokens must equal."""

import copy
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.errors import TokenbusError
from shared.messages import FinishReason, Resume, SamplingParams, TokenLogprob, ToolCallDelta, Usage
from worker.engines.base import EngineInfo, EngineRequest, Output, Stepper

Payload = str | list[int] | dict[str, Any]
SaveModel = Callable[..., Path]


class Answer:
    """What a request was answered so far."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.tool_calls: list[ToolCallDelta] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.stop: str | None = None
        self.texts: list[str] = []
        self.embeddings: list[str] | None = None
        self.result: dict[str, Any] | None = None
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.error: TokenbusError | None = None

    def take(self, output: Output) -> None:
        assert not self.ended, "an output after the end"
        self.text += output.text
        self.texts.append(output.text)
        self.reasoning += output.reasoning
        self.tool_calls += output.tool_calls
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs += output.prompt_logprobs
        self.stop = output.stop
        self.embeddings = output.embeddings or self.embeddings
        self.result = output.result or self.result
        self.finish_reason, self.usage, self.error = output.finish_reason, output.usage, output.error

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of the usage, what does not depend on what others computed before."""
        assert self.usage is not None
        return self.usage.prompt_tokens, self.usage.completion_tokens, self.usage.reasoning_tokens


class Stepping:
    """A loaded stepper and the answers that it gave."""

    def __init__(self, stepper: Stepper, info: EngineInfo) -> None:
        self.stepper = stepper
        self.info = info
        self.answers: dict[str, Answer] = {}
        self._names = (f"r{number}" for number in itertools.count())

    @property
    def generation(self) -> Any:
        """The stepper for generation models within the engine's own."""
        return self.stepper._stepper  # type: ignore[attr-defined]

    def forget(self) -> None:
        self.stepper.abort_all()
        self.answers.clear()

    def submit(
        self,
        payload: str | list[int] | dict[str, Any],
        *,
        choice: int = 0,
        resume: Resume | None = None,
        adapter: int = 0,
        **sampling: Any,
    ) -> str:
        """A completion of a text or of ids; a dict is any other payload, of the kind that its key tells."""
        request_id = next(self._names)
        if not isinstance(payload, dict):
            payload = {"prompt": payload}
        kinds = {"prompt": "completion", "messages": "chat", "inputs": "embedding", "query": "rerank"}
        kind = kinds[next(iter(payload))]
        sampling = {"seed": 0, "temperature": 0.0, **sampling}
        params = SamplingParams(**sampling)
        request = EngineRequest(request_id, kind, payload, params, choice, resume, adapter)  # type: ignore[arg-type]
        self.stepper.add(self.stepper.prepare(request))
        self.answers[request_id] = Answer()
        return request_id

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            for output in self.stepper.step():
                self.answers[output.id].take(output)

    def crowd(self, requests: Iterable[dict[str, Any]]) -> list[Answer]:
        """Their answers, when each begins two steps after the one before."""
        names = []
        for request in requests:
            names.append(self.submit(**request))
            self.step(2)
        self.finish()
        return [self.answers[name] for name in names]

    def finish(self) -> None:
        for _ in range(5000):
            if not self.stepper.has_work():
                return
            self.step()
        raise AssertionError("the engine does not come to an end")

    def abort(self, request_id: str) -> None:
        self.stepper.abort(request_id)
        del self.answers[request_id]

    def answer(self, payload: Payload, **options: Any) -> Answer:
        """The whole answer to one request."""
        request_id = self.submit(payload, **options)
        self.finish()
        return self.answers[request_id]

    def alone(self, requests: Iterable[dict[str, Any]]) -> list[Answer]:
        return [self.answer(**request) for request in requests]


class Reference:
    """transformers' own `generate`, one prompt at a time."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path).backend_tokenizer

    @classmethod
    def beside(cls, engine: Stepping) -> "Reference":
        """Of the weights that an engine holds, in a model that knows nothing of packed rows."""
        reference = cls.__new__(cls)
        packed = engine.generation._model._model
        config = copy.deepcopy(packed.config)  # models made from one config share it, and its attention
        config._attn_implementation = "sdpa"
        reference.model = type(packed)(config).eval()
        reference.model.load_state_dict(packed.state_dict())
        reference.model.generation_config = packed.generation_config
        reference.tokenizer = engine.generation._frontend.tokenizer
        return reference

    def greedy(self, prompt: str | list[int], tokens: int, **options: Any) -> list[int]:
        ids = self.tokenizer.encode(prompt).ids if isinstance(prompt, str) else prompt
        given = torch.tensor([ids])
        out = self.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        return list(out[0, len(ids) :].tolist())

    @torch.inference_mode()
    def worst_choice(self, prompt: list[int], completion: list[int]) -> float:
        """How far below the best one a token was that was drawn, in standard deviations of its logits."""
        logits = self.model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        drawn = logits.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        return float(((logits.max(dim=-1).values - drawn) / logits.std(dim=-1)).max())

    @torch.inference_mode()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Of every token in the vocabulary, after each of the ids: [len(ids), vocabulary]."""
        logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(dim=-1)
