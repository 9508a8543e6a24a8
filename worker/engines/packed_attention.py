"""Attention over rows of different lengths that are packed into one input of shape [1, tokens].

Registered with transformers under NAME, it replaces the attention of any model that calls transformers'
AttentionInterface. The keys and values of new tokens are written into the cache (`slots=`, which models hand on), and
what every row sees of it is read from there: by two kernels, one for rows with one new token and one for the others, or
row by row where they cannot.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from worker.engines.kv_cache import Layer
from worker.engines.staging import Segment

if torch.cuda.is_available():  # Triton comes with torch for GPUs
    from worker.engines.attention_kernels import attend_pieces, attend_to_cache

NAME = "tokenbus_packed"
# Arguments that models pass along and that change nothing here. Any other one asks for an attention that this is not.
HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "use_cache", "return_dict", "cu_seq_lens_q"})


class UnsupportedAttentionError(Exception):
    """The model asks for something that would be computed wrongly here."""


@dataclass(slots=True)
class Kernels:
    """The same for kernels, int32. Of rows at the beginning that have one new token: where their keys begin, and their
    length with it, 0 for none. Of pieces of the others: where new tokens begin, how many they are, where keys begin,
    and how many the last of a piece's tokens sees."""

    longest: int  # a row may be
    starts: Tensor  # [singles]
    lengths: Tensor  # [singles]
    new_starts: Tensor  # [pieces], and so are the others
    counts: Tensor
    key_starts: Tensor
    piece_lengths: Tensor
    copies: dict[torch.device, "Kernels"] = field(default_factory=dict, init=False)

    def on(self, device: torch.device) -> "Kernels":
        """For a layer that lies there. A model on one GPU has no copies."""
        if device == self.lengths.device:
            return self
        if device not in self.copies:
            singles = self.starts, self.lengths
            pieces = self.new_starts, self.counts, self.key_starts, self.piece_lengths
            self.copies[device] = Kernels(self.longest, *(one.to(device) for one in (*singles, *pieces)))
        return self.copies[device]


@dataclass(slots=True)
class Packed:
    """One forward pass. Where no layer has a cache yet, every segment is a whole row, and `layers` are found."""

    segments: Sequence[Segment] = ()
    kernels: Kernels | None = None
    masks: dict[tuple[Segment, int | None, torch.device], Tensor] = field(default_factory=dict)  # of all layers
    layers: dict[int, Layer] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)  # that each layer asked for

    def mask(self, segment: Segment, window: int | None, like: Tensor) -> Tensor:
        """Added to the scores [new, length]: a token sees itself and what is before it, within the window."""
        key = segment, window, like.device
        if key not in self.masks:
            new = segment.end - segment.start
            at = torch.arange(segment.past, segment.past + new, device=like.device).unsqueeze(1)
            seen = torch.arange(segment.past + new, device=like.device).unsqueeze(0)
            hidden = seen > at if window is None else (seen > at) | (seen <= at - window)
            self.masks[key] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
        return self.masks[key]


class _Pass(threading.local):
    """The one that is computed: attention is called by the model, which hands on tensors. Models that share a process
    have a thread each."""

    now: Packed | None = None


PASS = _Pass()


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    slots: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, size], key and value [1, kv_heads, tokens, size] -> [1, tokens, heads, size]. slots: of
    the new tokens in the cache, [tokens]; None: there is none yet."""
    _check(module, attention_mask, kwargs)
    new_keys, new_values = key[0].transpose(0, 1), value[0].transpose(0, 1)
    if slots is None:
        assert PASS.now is not None
        _note(module, new_keys, new_values, sliding_window, PASS.now)
        return _attend(query[0], new_keys, new_values, scaling, sliding_window).unsqueeze(0), None
    keys: Tensor = module.keys  # type: ignore[assignment]
    values: Tensor = module.values  # type: ignore[assignment]
    keys.index_put_((slots,), new_keys)  # which a compiler makes one kernel of, with what made the new ones
    values.index_put_((slots,), new_values)
    attend = _attend_opaque if torch.compiler.is_compiling() else _attend
    return attend(query[0], keys, values, scaling, sliding_window).unsqueeze(0), None


def _check(module: nn.Module, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    if mask is not None:
        raise UnsupportedAttentionError("it builds an attention mask of its own")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise UnsupportedAttentionError("its attention is not causal")
    for name, value in kwargs.items():
        if name not in HARMLESS and name != "is_causal" and value is not None and value is not False:
            raise UnsupportedAttentionError(f"its attention takes {name!r}")


def _note(module: nn.Module, keys: Tensor, values: Tensor, window: int | None, packed: Packed) -> None:
    index: int = module.layer_idx  # type: ignore[assignment]
    packed.windows[index] = window
    packed.layers[index] = Layer(module, keys.shape[1], keys.shape[2], values.shape[2], keys.dtype, keys.device)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """query [heads, tokens, size], keys and values [tokens of the cache, kv_heads, size] -> [tokens, heads, size]."""
    packed = PASS.now
    assert packed is not None
    if packed.kernels is not None:
        return _attend_by_kernels(packed.kernels.on(query.device), query, keys, values, scaling, window)
    out = query.new_empty((query.shape[1], query.shape[0], values.shape[2]))
    for segment in packed.segments:
        new = slice(segment.start, segment.end)
        held = slice(segment.held, segment.held + segment.past + segment.end - segment.start)
        rows = query[:, new], keys[held].transpose(0, 1), values[held].transpose(0, 1)
        if segment.end - segment.start == 1:
            out[new] = _attend_one(*rows, scaling, window)
        else:
            plain = segment.past == 0 and (window is None or segment.end - segment.start <= window)
            mask = None if plain else packed.mask(segment, window, query)
            out[new] = _attend_chunk(*rows, scaling, mask)
    return out


def _attend_by_kernels(
    kernels: Kernels, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """A piece of a new prompt, and one after what the cache holds, are the same."""
    out = query.new_empty((query.shape[1], query.shape[0], query.shape[2]))
    if len(kernels.new_starts):
        pieces = kernels.new_starts, kernels.counts, kernels.key_starts, kernels.piece_lengths
        attend_pieces(query, keys, values, *pieces, scaling, window, out)
    if len(kernels.starts):
        singles = kernels.starts, kernels.lengths, kernels.longest
        attend_to_cache(query, keys, values, *singles, scaling, window, out)
    return out


@torch.library.custom_op("tokenbus::attend", mutates_args=())
def _attend_opaque(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """For the compiler, which must not look inside."""
    return _attend(query, keys, values, scaling, window)


@_attend_opaque.register_fake
def _(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
    return query.new_empty((query.shape[1], query.shape[0], values.shape[2]))


def _attend_one(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """One new token: the heads that share a key head take the place of its queries, so that no key is repeated."""
    if window is not None and keys.shape[1] > window:
        keys, values = keys[:, -window:], values[:, -window:]
    folded = query.reshape(1, keys.shape[0], -1, query.shape[2])
    out = scaled_dot_product_attention(folded, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling)
    return out.reshape(1, -1, values.shape[2])


def _attend_chunk(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, mask: Tensor | None) -> Tensor:
    """Several new tokens after what the row holds; without a mask they are all that there is of it. The groups of heads
    see their keys expanded, but not copied."""
    kv_heads, length, head_dim = keys.shape
    grouped = query.reshape(kv_heads, -1, query.shape[1], query.shape[2])
    groups = grouped.shape[1]
    keys = keys.unsqueeze(1).expand(kv_heads, groups, length, head_dim)
    values = values.unsqueeze(1).expand(kv_heads, groups, length, values.shape[2])
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling)
    return out.flatten(0, 1).transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)
