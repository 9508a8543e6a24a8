"""What a GGUF file says of its model, before its vocabulary and its weights are read."""

from dataclasses import dataclass
from pathlib import Path

from gguf import PoolingType

from shared.errors import StartupError, one_line
from worker.engines.gguf_file import Reader


@dataclass(frozen=True, slots=True)
class Head:
    context_length: int
    pooling: int

    @property
    def pools(self) -> bool:
        """It embeds or ranks, and does not generate."""
        return self.pooling != PoolingType.NONE

    @property
    def ranks(self) -> bool:
        return self.pooling == PoolingType.RANK


def head_of(model_path: str) -> Head:
    """Raises StartupError."""
    path = Path(model_path).expanduser()
    if path.suffix.lower() != ".gguf" or not path.is_file():
        raise StartupError(f"--engine llamacpp serves .gguf files; {model_path} is none")
    try:
        fields = Reader(path).fields
        architecture = fields["general.architecture"].contents()
        context, pooling = (fields.get(f"{architecture}.{name}") for name in ("context_length", "pooling_type"))
        return Head(
            context_length=int(context.contents()) if context is not None else 0,
            pooling=int(pooling.contents()) if pooling is not None else PoolingType.NONE,
        )
    except Exception as error:  # whatever a file that is not what it should be makes of the reader
        raise StartupError(f"cannot read {model_path}: {one_line(error)}") from error
