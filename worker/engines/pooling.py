"""From an encoder's hidden states to one vector per text, as the model's own sentence-transformers files say."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from shared.errors import StartupError

Mode = Literal["mean", "cls", "max", "lasttoken"]
FLAGS: dict[str, Mode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


class JsonFiles(Protocol):
    def json(self, name: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Pooling:
    mode: Mode = "mean"
    normalise: bool = True
    lower_case: bool = False

    @classmethod
    def of(cls, files: JsonFiles) -> "Pooling":
        """Raises StartupError for what would give other vectors than the model's authors meant."""
        modules = files.json("modules.json")
        if modules is None:
            return cls()
        kinds = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
            raise StartupError(f"the transformers engine cannot compute this embedding model's {min(unknown)!r} module")
        mode: Mode = "mean"
        if "Pooling" in kinds:
            mode = _mode(files.json(f"{kinds['Pooling']}/config.json") or {})
        settings = files.json("sentence_bert_config.json") or {}
        return cls(mode, "Normalize" in kinds, bool(settings.get("do_lower_case", False)))

    def text(self, text: str) -> str:
        return text.lower() if self.lower_case else text

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [texts, tokens, size], mask [texts, tokens] (0: padding, on the right) -> [texts, size]."""
        inside = mask.unsqueeze(-1)
        if self.mode == "mean":
            pooled = (hidden * inside).sum(dim=1) / inside.sum(dim=1)
        elif self.mode == "max":
            pooled = hidden.masked_fill(inside == 0, -torch.inf).amax(dim=1)
        elif self.mode == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.sum(dim=1) - 1]
        return normalize(pooled, dim=-1) if self.normalise else pooled

    def cut(self, vectors: Tensor, dimensions: int) -> Tensor:
        """[texts, size] -> [texts, dimensions]: the first ones, of unit length again where the whole ones are. As
        sentence-transformers' truncate_dim with normalize_embeddings, and for any model as there: only those that were
        trained for it (Matryoshka) lose little."""
        vectors = vectors[:, :dimensions]
        return normalize(vectors, dim=-1) if self.normalise else vectors


def _mode(config: dict[str, Any]) -> Mode:
    named = config.get("pooling_mode")  # newer files name it, older ones have a flag for each
    modes = [mode for flag, mode in FLAGS.items() if named in (mode, flag) or config.get(flag)]
    other = [
        flag for flag, on in config.items() if on is True and flag not in FLAGS and flag.startswith("pooling_mode")
    ]
    if len(modes) != 1 or other:
        raise StartupError(f"the transformers engine cannot compute this pooling: {', '.join(other) or named or modes}")
    return modes[0]
