"""What lies at --model-path (a directory, a file.gguf or a hub id): its config, tokenizer and weights.

Everything that can be wrong with it is said as StartupError, in one line.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file

from shared.errors import StartupError, one_line
from shared.logging import get_logger
from worker.engines.cpu_linear import bfloat16_is_faster
from worker.engines.fingerprint import fingerprint_of
from worker.engines.gguf_file import restore_pre_tokenizer
from worker.engines.options import EngineOptions, spare_threads
from worker.engines.placement import Placement
from worker.engines.shards import check_plan

log = get_logger(__name__)

DTYPES = {
    name: dtype
    for dtype, names in {
        torch.float32: ("float32", "float"),
        torch.float16: ("float16", "half"),
        torch.bfloat16: ("bfloat16",),
    }.items()
    for name in names
}
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


class Checkpoint:
    def __init__(self, options: EngineOptions, rank: int = 0) -> None:
        """rank: of this process, among those that a model is dealt out to."""
        self._options = options
        self._source, self._gguf_file, self._is_local = _locate(options.model_path)
        self.device = _device(options.device)
        if options.tensor_parallel_size > 1:
            self.device = _device_of(rank, self.device)
        self._placement = Placement(options, self.device)
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        if rank or not sys.stderr.isatty():
            transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(options.threads or spare_threads(options.tensor_parallel_size))

    @cached_property
    def config(self) -> Any:
        with self._reading("config"):
            return AutoConfig.from_pretrained(self._source, **self._arguments)

    def task(self) -> Literal["generation", "embedding", "rerank"]:
        architectures = getattr(self.config, "architectures", None) or []
        if any(name.endswith("ForSequenceClassification") for name in architectures):
            if self.config.num_labels == 1:
                return "rerank"
            raise StartupError(
                f"{self._options.model_path} is a classifier with {self.config.num_labels} labels; only those with one "
                "rank documents"
            )
        if self.json("modules.json") is not None:
            return "embedding"
        if self._gguf_file or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
            return "generation"
        encoder = any(name.endswith(("Model", "ForMaskedLM")) for name in architectures)
        if encoder and not getattr(self.config, "is_encoder_decoder", False):
            return "embedding"
        raise StartupError(
            f"{self._options.model_path} holds {', '.join(architectures) or self.config.model_type}, which is neither "
            "a causal language model nor a text encoder nor a reranker"
        )

    def check_dealing_out(self, processes: int) -> None:
        """Raises StartupError for what the layers of cannot be dealt out."""
        path = self._options.model_path
        if self.task() != "generation":
            raise StartupError(f"--tensor-parallel-size is for models that generate, and {path} holds none")
        if self._gguf_file or self._quantized() is not None:
            raise StartupError(f"--tensor-parallel-size: the weights of {path} are quantized, which is not supported")
        check_plan(self.config.get_text_config(), processes)

    def json(self, name: str) -> Any:
        """The content of one of its JSON files; None if there is no such file."""
        if self._gguf_file:
            return None
        with self._reading(name):
            path = cached_file(
                self._source,
                name,
                revision=self._options.revision,
                local_files_only=self._is_local,
                _raise_exceptions_for_missing_entries=False,
            )
            return None if path is None else json.loads(Path(path).read_text())

    def tokenizer(self) -> Any:
        with self._reading("tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(self._source, **self._arguments)
        if not getattr(tokenizer, "is_fast", False):
            raise StartupError(f"{self._options.model_path} has no tokenizer that the tokenizers library can run")
        if self._gguf_file:
            restore_pre_tokenizer(tokenizer.backend_tokenizer, Path(self._source, self._gguf_file))
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        if self._options.chat_template is not None:
            tokenizer.chat_template = _chat_template(self._options.chat_template)
        return tokenizer

    def causal_model(self) -> PreTrainedModel:
        return self._model(AutoModelForCausalLM, self._faster_on_cpu)

    def outline(self) -> PreTrainedModel:
        """A causal model without its weights: what it is made of, for those who compute it otherwise."""
        with self._reading("config"):
            with torch.device("meta"):
                model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                    self.config, trust_remote_code=self._options.trust_remote_code
                )
            if (saved := self.json("generation_config.json")) is not None:
                model.generation_config = GenerationConfig.from_dict(saved)
        return model

    def encoder(self) -> PreTrainedModel:
        return self._model(AutoModel, lambda: torch.float32)

    def cross_encoder(self) -> PreTrainedModel:
        return self._model(AutoModelForSequenceClassification, lambda: torch.float32)

    def _model(self, auto: Any, on_cpu: Callable[[], torch.dtype]) -> PreTrainedModel:
        quantized = self._quantized()
        self._placement.check(self._options.model_path, "GGUF" if self._gguf_file else quantized)
        with self._reading("weights"):
            model = self._placement.load(
                auto,
                self._source,
                prequantized=quantized is not None,
                config=self.config,
                dtype=self._dtype(on_cpu),
                **self._arguments,
            )
            model.eval()  # type: ignore[no-untyped-call]
        return model

    def _quantized(self) -> str | None:
        """How, by its own config; None: it is not, or a GGUF file, which is read as if it were not."""
        configs = [] if self._gguf_file else [self.config, self.config.get_text_config()]
        found = [one.quantization_config for one in configs if getattr(one, "quantization_config", None)]
        return next((str(one.get("quant_method")) for one in found), None)

    def max_model_len(self) -> int:
        """Tokens of prompt and completion together: what the model can hold, or less if so asked."""
        config = self.config.get_text_config()
        limit: int | None = _rope_limit(config) or getattr(config, "max_position_embeddings", None)
        asked = self._options.max_model_len
        if limit is None:  # of Mamba, whose state does not grow, and of BLOOM
            if asked is None:
                raise StartupError(
                    f"{self._options.model_path} does not say how many tokens it can hold: --max-model-len"
                )
            return asked
        if asked is not None and asked > limit:
            raise StartupError(f"--max-model-len {asked} is more than the {limit} tokens that the model can hold")
        return asked or limit

    def max_input_tokens(self, tokenizer: Any) -> int:
        """Tokens of one text to embed, the special ones included."""
        limits = [self.max_model_len()]
        if (asked := (self.json("sentence_bert_config.json") or {}).get("max_seq_length")) is not None:
            limits.append(asked)
        limits.append(tokenizer.model_max_length)  # RoBERTa: its positions begin after the padding's
        return int(min(limits))

    def eos_ids(self, model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
        ids: set[int] = set()
        for source in (model.generation_config, tokenizer, self.config, self.config.get_text_config()):
            found = getattr(source, "eos_token_id", None)
            ids.update(found if isinstance(found, list) else [] if found is None else [found])
        return frozenset(ids)

    def fingerprint(self, model: PreTrainedModel, tokenizer: Any) -> str:
        config = self.json("config.json")
        named = {"tool calls": self._options.tool_call_parser, "reasoning": self._options.reasoning_parser}
        parsers = [f"{what}: {name}" for what, name in named.items() if name is not None]
        return fingerprint_of(config, tokenizer, model, self._weights_bytes(), parsers, self._placement.quantization)

    def _weights_bytes(self) -> list[int]:
        if self._gguf_file:
            return [Path(self._source, self._gguf_file).stat().st_size]
        config = cached_file(
            self._source, "config.json", revision=self._options.revision, local_files_only=self._is_local
        )
        folder = Path(str(config)).parent
        files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
        return sorted(file.stat().st_size for file in files)

    @property
    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "revision": self._options.revision,
            "trust_remote_code": self._options.trust_remote_code,
            "local_files_only": self._is_local,
        }
        return {**arguments, "gguf_file": self._gguf_file} if self._gguf_file else arguments

    def _dtype(self, on_cpu: Callable[[], torch.dtype]) -> Any:
        name = self._options.dtype
        if name in (None, "auto"):
            return on_cpu() if self.device.type == "cpu" else "auto"
        if name not in DTYPES:
            raise StartupError(f"--dtype {name}: use one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]

    def _faster_on_cpu(self) -> torch.dtype:
        """Where it makes no difference, float32: there equal runs give equal tokens."""
        config = self.config.get_text_config()
        hidden: int = config.hidden_size
        alone = self._options.tensor_parallel_size == 1  # or one process might find otherwise than the others
        if (
            self._options.weight_bits is None
            and alone
            and bfloat16_is_faster(getattr(config, "intermediate_size", None) or 4 * hidden, hidden)
        ):
            log.info("bfloat16, which is faster on this CPU; --dtype float32 is more exact")
            return torch.bfloat16
        return torch.float32

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        try:
            yield
        except StartupError:
            raise
        except Exception as error:  # libraries raise what they please for a file that is not what it should be
            raise StartupError(f"cannot load the {what} of {self._options.model_path}: {one_line(error)}") from error


def _locate(model_path: str) -> tuple[str, str | None, bool]:
    """(directory or hub id, name of the GGUF file in it, whether it is on this machine)."""
    path = Path(model_path).expanduser()
    if path.is_dir():
        return str(path), None, True
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise StartupError(f"{model_path} is neither a model directory nor a .gguf file")
        return str(path.parent), path.name, True
    if not HUB_ID.fullmatch(model_path) or path.suffix.lower() == ".gguf":
        raise StartupError(f"no such file or directory: {model_path}")
    return model_path, None, False


def _device(name: str | None) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        return torch.device(next(kind for kind, present in available.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StartupError(f"--device {name}: use one of {', '.join(available)}") from None
    if not available.get(device.type, False) or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise StartupError(f"--device {name}: this machine has no such device, or this torch cannot use it")
    return device


def _device_of(rank: int, device: torch.device) -> torch.device:
    if device.index is not None:
        raise StartupError(f"--device {device} and --tensor-parallel-size: choose the GPUs by CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", rank) if device.type == "cuda" else device


def _chat_template(option: str) -> str:
    """The option itself if it is a template, else the content of the file that it names."""
    if "{" in option or "\n" in option:
        return option
    try:
        return Path(option).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"cannot read the chat template {option}: {error}") from error


def _rope_limit(config: Any) -> int | None:
    """Where the rotary frequencies change with the longest sequence of a batch, the length up to which they do not.

    Beyond it, one row's length would change its neighbours' tokens.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if parameters.get("rope_type") not in ("dynamic", "longrope"):
        return None
    limit = parameters.get("original_max_position_embeddings")
    return limit or getattr(config, "original_max_position_embeddings", None)
