"""In vLLM's own processes: what its scheduler cannot do for a sequence (see `vllm_impl._extra`).

It takes what another worker made of a sequence for a part of the prompt, so that it would begin a grammar anew and
penalize nothing of that; and its grammars know no special tokens.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from llguidance import LLTokenizer
from torch import Tensor
from transformers import AutoTokenizer
from vllm.config import ModelConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from shared.logging import get_logger
from worker.engines.grammar import Grammars, bytes_of_tokens
from worker.engines.vllm_impl import EXTRA

log = get_logger(__name__)

Processor = Callable[[list[int], Tensor], Tensor]


class Continued(AdapterLogitsProcessor):  # type: ignore[misc]
    """A processor for each request that says so in `extra_args`."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._config: ModelConfig = vllm_config.model_config
        self._grammars = cache(self._make_grammars)

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Processor | None:
        said = (params.extra_args or {}).get(EXTRA)
        if said is None:
            return None
        penalties = _Penalties(said)
        if said["grammar"] is None:
            return penalties
        constraint = _Constraint(lambda: self._grammars(tuple(said["eos_ids"])), said)
        return lambda made, logits: constraint(made, penalties(made, logits))

    def _make_grammars(self, eos_ids: tuple[int, ...]) -> Grammars:
        config = self._config
        tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer, revision=config.tokenizer_revision, trust_remote_code=config.trust_remote_code
        )
        tokens: LLTokenizer = bytes_of_tokens(tokenizer.backend_tokenizer, config.get_vocab_size(), frozenset(eos_ids))
        return Grammars(tokens)


class _Penalties:
    """Of the tokens that were made, there and here; vLLM is asked for none then."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._presence, self._frequency = said["presence_penalty"], said["frequency_penalty"]
        self._counts = Counter(said["token_ids"])
        self._seen = 0

    def __call__(self, made: list[int], logits: Tensor) -> Tensor:
        if self._presence or self._frequency:
            self._counts.update(made[self._seen :])
            self._seen = len(made)
            penalties = [self._presence + self._frequency * count for count in self._counts.values()]
            ids = torch.tensor(list(self._counts), device=logits.device)
            logits[ids] -= torch.tensor(penalties, dtype=logits.dtype, device=logits.device)
        return logits


class _Constraint:
    """A grammar, from where it stands. What went wrong here would end all of vLLM: who reads the token finds it too,
    and ends this sequence alone."""

    def __init__(self, grammars: Callable[[], Grammars], said: Mapping[str, Any]) -> None:
        self._ends = frozenset(said["ends"])
        self._seen = 0
        self._is_broken = False
        with self._alone():
            self._grammars = grammars()
            self._matcher = self._grammars.matcher(said["grammar"])
            for token_id in said["token_ids"]:
                self._matcher.push(token_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # a panic in a library of Rust is no Exception
            self._is_broken = True
            log.warning("a grammar: %s", error)

    def __call__(self, made: list[int], logits: Tensor) -> Tensor:
        if not self._is_broken:
            with self._alone():
                self._constrain(made, logits)
        return logits

    def _constrain(self, made: list[int], logits: Tensor) -> None:
        for token_id in made[self._seen :]:
            if token_id not in self._ends:
                self._matcher.push(token_id)
        self._seen = len(made)
        forbidden = torch.from_numpy(self._grammars.forbidden(1, logits.shape[0], [(0, self._matcher)])[0])
        logits.masked_fill_(forbidden.to(logits.device), -torch.inf)
