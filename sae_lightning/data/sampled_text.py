"""A transformer's own text: in its domain by construction, and nothing to fetch."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lightning.data.packing import bos, check_context
from sae_lightning.data.rows import generator
from sae_lightning.data.text import Text
from sae_lightning.errors import InputError
from sae_lightning.transformers.base import Transformer


class SampledText(Text):
    """Ancestral samples at `temperature` (1: the transformer's own distribution), drawn `batch_size` sequences at a time, endlessly.

    Sequence i depends on (seed, i // batch_size), but for the rounding of another device or number of threads. Sampling starts
    from BOS, without one from EOS, without either from a line end; what it starts from is part of a sequence only where
    `prepend_bos` wants BOS there. A transformer of random weights reads what the trained one writes. The key-value cache of one batch must fit into memory.
    """

    name = "sampled_text"

    def __init__(self, temperature: float = 1.0, batch_size: int = 512, prepend_bos: bool | None = None):
        super().__init__(prepend_bos)
        if temperature <= 0:
            raise InputError(f"data.text.temperature={temperature}: choose a positive number, 1 for the transformer's own distribution")
        if batch_size < 1:
            raise InputError(f"data.text.batch_size={batch_size}: choose 1 or more")
        self.temperature = float(temperature)
        self.batch_size = batch_size

    def identity(self) -> dict[str, Any]:
        return {"text": "sampled", "temperature": self.temperature, "batch_size": self.batch_size, "prepend_bos": self.prepend_bos}

    def check(self) -> None:
        """There is nothing to look at: the transformer is all it needs."""

    def sequences(self, transformer: Transformer, context_length: int, start: int, seed: int) -> Iterator[list[int]]:
        check_context(transformer, context_length)
        first = bos(transformer, self.prepend_bos)
        dropped = 0 if first else 1
        model = transformer.trained().load("cuda" if torch.cuda.is_available() else "cpu")
        for number in itertools.count(start // self.batch_size):
            drawn = sample(model, first or _first(transformer), context_length + dropped, self.batch_size, self.temperature, seed, number)
            yield from drawn[max(0, start - number * self.batch_size) :, dropped:].tolist()


def _first(transformer: Transformer) -> list[int]:
    tokenizer: Any = transformer.tokenizer()
    for i in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if i is not None:
            return [i]
    return tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]


def sample(
    model: nn.Module, first: list[int], length: int, batch_size: int, temperature: float, seed: int, number: int
) -> Int[Tensor, "batch length"]:
    """One batch of sequences that start with the one token of `first`, drawn with the generator of (seed, number of the batch)."""
    from sae_lightning.transformers.cache import cache_of

    device = next(model.parameters()).device
    draws = generator(seed, "sampled text", number)
    tokens = torch.empty(batch_size, length, dtype=torch.int64, device=device)
    tokens[:, 0] = first[0]
    cache = cache_of(model, length)
    with torch.inference_mode():
        for i in range(1, length):
            logits = model(input_ids=tokens[:, i - 1 : i], past_key_values=cache, use_cache=True).logits[:, -1]
            tokens[:, i] = draw(logits.float() / temperature, torch.rand(batch_size, generator=draws, dtype=torch.float64))
    return tokens


def draw(logits: Float[Tensor, "batch vocabulary"], uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """One token per row, with the chances softmax(logits), from one uniform number in [0, 1) per row: where it falls in their sums."""
    sums = torch.softmax(logits, dim=-1).cumsum(-1, dtype=torch.float64)
    at = uniform.to(sums.device)[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, at, right=True)[:, 0].clamp_(max=logits.shape[-1] - 1)
