"""Where the weights of a model lie, and in how many bits: quantized by bitsandbytes, spread over GPUs by accelerate, or
dealt out to processes by transformers."""

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import convert_file_size_to_int
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from shared.errors import StartupError
from worker.engines.options import EngineOptions

# What makes one number of a document: too small to save anything, and for bitsandbytes' kernels to take.
HEADS_OF_RERANKERS = ["classifier", "score"]
# LLM.int8() keeps columns in half precision in which any token of the step is above 6, so that a reply depends on what
# else is computed: one of six greedy replies of SmolLM2 was the same in a crowd as alone, and without this all six are,
# 0.038 nats from float32 instead of 0.023. It would also make a GPU wait for the CPU at each product.
OUTLIERS_ABOVE = 0.0  # never
OVERFLOWS = "dispatched on the CPU or the disk"  # how transformers refuses it, for quantized models alone


class Placement:
    def __init__(self, options: EngineOptions, device: torch.device) -> None:
        """Raises StartupError for what this machine cannot do."""
        self._bits = options.weight_bits
        self._gpus = options.num_gpus
        self._most = options.max_gpu_memory
        self._processes = options.tensor_parallel_size
        self._device = device
        if self._bits is not None:
            self._check_quantizer()
        if self._is_mapped:
            self._check_gpus()
        if self._processes > 1:
            self._check_processes()

    @property
    def quantization(self) -> str | None:
        """That was asked for; None: the weights are taken as they are."""
        return None if self._bits is None else f"{self._bits}bit"

    def check(self, model_path: str, already: str | None) -> None:
        """already: how the checkpoint is quantized itself."""
        if self._bits is not None and already is not None:
            raise StartupError(f"--load-{self._bits}bit: {model_path} is quantized already ({already})")

    def load(self, auto: Any, source: str, *, prequantized: bool, **arguments: Any) -> PreTrainedModel:
        """auto: one of transformers' Auto classes. prequantized: so it was saved."""
        mapped = self._is_mapped or self._bits is not None or prequantized
        if mapped:
            arguments |= self._mapping()
            # It says with every product of every step that activations become half precision.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        if self._bits is not None:
            arguments["quantization_config"] = self._quantizer(auto)
        if self._processes > 1:
            arguments["distributed_config"] = DistributedConfig(tp_size=self._processes)
        try:
            model: PreTrainedModel = auto.from_pretrained(source, **arguments)
        except ValueError as error:
            if OVERFLOWS in str(error):
                raise self._too_large() from error
            raise
        if not mapped and self._processes == 1:
            model.to(self._device)  # type: ignore[arg-type]
        if self._is_mapped:
            self._check_whole(model)
        if len(devices_of(model)) > 1:
            bring_back(model)
        if is_quantized(model):
            _set_up_products(model)
        return model

    @property
    def _is_mapped(self) -> bool:
        """By accelerate, which weighs the layers."""
        return self._gpus > 1 or self._most is not None

    def _mapping(self) -> dict[str, Any]:
        if self._is_mapped:
            return {"device_map": "balanced", "max_memory": dict(enumerate(self._memory()))}
        return {"device_map": {"": self._device}}

    def _quantizer(self, auto: Any) -> BitsAndBytesConfig:
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=self._bits == 8,
            load_in_4bit=self._bits == 4,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=HEADS_OF_RERANKERS if auto is AutoModelForSequenceClassification else None,
        )

    def _memory(self) -> Iterator[int]:
        """Bytes for weights, of each GPU."""
        for gpu in range(self._gpus):
            free = torch.cuda.mem_get_info(gpu)[0]
            yield free if self._most is None else min(free, convert_file_size_to_int(self._most))

    def _check_quantizer(self) -> None:
        flag = f"--load-{self._bits}bit"
        if self._device.type == "mps":
            raise StartupError(f"{flag} is for --device cuda and cpu")
        if find_spec("bitsandbytes") is None:
            raise StartupError(f"{flag} needs the library 'bitsandbytes': pip install bitsandbytes")

    def _check_gpus(self) -> None:
        flag = f"--num-gpus {self._gpus}" if self._gpus > 1 else f"--max-gpu-memory {self._most}"
        if self._device.type != "cuda":
            raise StartupError(f"{flag} is for --device cuda, and this worker has {self._device.type}")
        if self._gpus > (present := torch.cuda.device_count()):
            raise StartupError(f"{flag}: this machine has {present}")

    def _check_processes(self) -> None:
        flag = f"--tensor-parallel-size {self._processes}"
        if self._bits is not None or self._is_mapped:
            raise StartupError(
                f"{flag} does not go together with --load-8bit, --load-4bit, --num-gpus, --max-gpu-memory"
            )
        if self._device.type == "cuda" and self._processes > (present := torch.cuda.device_count()):
            raise StartupError(f"{flag}: this machine has {present}")
        # transformers deals out to what it takes for the accelerator.
        if self._device.type == "mps" or (self._device.type == "cpu" and torch.accelerator.is_available()):
            raise StartupError(f"{flag} is for --device cuda, and for machines without a GPU")

    def _check_whole(self, model: PreTrainedModel) -> None:
        """accelerate leaves what does not fit on the CPU or the disk, and says nothing: each step would read it."""
        if any(device.type != "cuda" for device in devices_of(model)):
            raise self._too_large()

    def _too_large(self) -> StartupError:
        limit = "" if self._most is None else f" with --max-gpu-memory {self._most}"
        return StartupError(f"the weights do not fit on {self._gpus} GPU{'s' * (self._gpus > 1)}{limit}")


def devices_of(model: torch.nn.Module) -> set[torch.device]:
    return {parameter.device for parameter in model.parameters()}


def is_quantized(model: PreTrainedModel) -> bool:
    """By bitsandbytes, now or when it was saved."""
    return any(getattr(model, name, False) for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"))


def bring_back(model: PreTrainedModel) -> None:
    """The last hidden states to where the ids are: there are the places of those whose logits are wanted."""
    hook = AlignDevicesHook(execution_device=model.device, io_same_device=True)
    add_hook_to_module(model.base_model, hook, append=True)


def _set_up_products(model: PreTrainedModel) -> None:
    """Also of a model that was saved quantized, in whatever way its config says."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.state.threshold = OUTLIERS_ABOVE
        if isinstance(module, Linear4bit):
            module.compute_dtype = model.dtype  # else float32; what 'auto' is, is not known before
