"""A key-value cache that is allocated once: transformers' own one copies all of it at every token."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class _Layer(DynamicLayer):
    def __init__(self, length: int):
        super().__init__()
        self.length = length
        self.room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.room:
            self.lazy_initialization(key_states, value_states)
            self.room = [new.new_empty(*new.shape[:-2], self.length, new.shape[-1]) for new in (key_states, value_states)]
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[..., start:stop, :] = new
        self.keys, self.values = (room[..., :stop, :] for room in self.room)
        return self.keys, self.values


def cache_of(model: Any, length: int) -> DynamicCache:
    """An empty cache for sequences of at most `length` tokens. Layers of other kinds (sliding, linear) stay transformers' own."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_Layer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
