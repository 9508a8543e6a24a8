"""Attention over rows of different lengths that are packed into one input of shape [1, tokens].

Registered with transformers under NAME, it replaces the attention of any model that calls transformers'
AttentionInterface. Which tokens belong to which row comes with the call (`packed=`); each row keeps its own keys
and values, which grow with it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "tokenbus_packed"
GROWTH = 256  # tokens by which a row's memory grows
# Arguments that models pass along and that change nothing here. Any other one asks for an attention that this is not.
HARMLESS = frozenset({"dropout", "position_ids", "cache_position", "use_cache", "return_dict", "cu_seq_lens_q"})


class UnsupportedAttentionError(Exception):
    """The model asks for something that would be computed wrongly here."""


class RowCache:
    """Keys and values of one row: per layer a tensor [2, kv_heads, capacity, head_dim]."""

    def __init__(self) -> None:
        self.length = 0  # tokens that all layers hold
        self._layers: dict[int, Tensor] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes [kv_heads, new, head_dim] of each; returns all of the row's, [kv_heads, length, head_dim]."""
        end = self.length + keys.shape[1]
        held = self._layers.get(layer)
        if held is None or held.shape[2] < end:
            held = self._layers[layer] = self._grown(held, end, keys)
        held[0, :, self.length : end] = keys
        held[1, :, self.length : end] = values
        return held[0, :, :end], held[1, :, :end]

    def _grown(self, held: Tensor | None, needed: int, like: Tensor) -> Tensor:
        capacity = -(-needed // GROWTH) * GROWTH
        grown = like.new_empty((2, like.shape[0], capacity, like.shape[2]))
        if held is not None:
            grown[:, :, : self.length] = held[:, :, : self.length]
        return grown


@dataclass(slots=True)
class Segment:
    """The tokens [start, end) of the packed input: the next ones of one row, which already holds `past`."""

    cache: RowCache
    start: int
    end: int
    masks: dict[int | None, Tensor] = field(default_factory=dict)  # by window: the same in many layers

    def mask(self, window: int | None, like: Tensor) -> Tensor:
        """Added to the scores [new, length]: a token sees itself and what is before it, within the window."""
        if window not in self.masks:
            past, new = self.cache.length, self.end - self.start
            at = torch.arange(past, past + new, device=like.device).unsqueeze(1)
            seen = torch.arange(past + new, device=like.device).unsqueeze(0)
            hidden = seen > at if window is None else (seen > at) | (seen <= at - window)
            self.masks[window] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
        return self.masks[window]


@dataclass(slots=True)
class Packed:
    """One forward pass: its rows, and which sliding window each layer asked for."""

    segments: list[Segment]
    windows: dict[int, int | None] = field(default_factory=dict)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, tokens, size], key and value [1, kv_heads, tokens, size] -> [1, tokens, heads, size]."""
    packed = _checked(module, attention_mask, packed, kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    packed.windows[layer] = sliding_window
    queries, keys, values = query[0], key[0], value[0]
    out = query.new_empty((1, query.shape[2], query.shape[1], value.shape[3]))
    for segment in packed.segments:
        rows = slice(segment.start, segment.end)
        held = segment.cache.append(layer, keys[:, rows], values[:, rows])
        attend = _attend_one if segment.end - segment.start == 1 else _attend_chunk
        out[0, rows] = attend(segment, queries[:, rows], *held, scaling, sliding_window)
    return out, None


def _checked(module: nn.Module, mask: Tensor | None, packed: Packed | None, kwargs: dict[str, Any]) -> Packed:
    if packed is None:
        raise UnsupportedAttentionError("it does not pass arguments on to its attention")
    if mask is not None:
        raise UnsupportedAttentionError("it builds an attention mask of its own")
    if not getattr(module, "is_causal", True) or kwargs.pop("is_causal", None) is False:
        raise UnsupportedAttentionError("its attention is not causal")
    for name, value in kwargs.items():
        if name not in HARMLESS and value is not None and value is not False:
            raise UnsupportedAttentionError(f"its attention takes {name!r}")
    return packed


def _attend_one(
    segment: Segment, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """One new token: the heads that share a key head take the place of its queries, so that no key is repeated."""
    if window is not None and keys.shape[1] > window:
        keys, values = keys[:, -window:], values[:, -window:]
    folded = query.reshape(1, keys.shape[0], -1, query.shape[2])
    out = scaled_dot_product_attention(folded, keys.unsqueeze(0), values.unsqueeze(0), scale=scaling)
    return out.reshape(1, -1, values.shape[2])


def _attend_chunk(
    segment: Segment, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """Several new tokens after what the row holds. The groups of heads see their keys expanded, but not copied."""
    kv_heads, length, head_dim = keys.shape
    grouped = query.reshape(kv_heads, -1, query.shape[1], query.shape[2])
    groups = grouped.shape[1]
    keys = keys.unsqueeze(1).expand(kv_heads, groups, length, head_dim)
    values = values.unsqueeze(1).expand(kv_heads, groups, length, values.shape[2])
    plain = segment.cache.length == 0 and (window is None or length <= window)
    mask = None if plain else segment.mask(window, query)
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, is_causal=plain, scale=scaling)
    return out.flatten(0, 1).transpose(0, 1)


AttentionInterface.register(NAME, packed_attention)
