"""Text that a transformer writes, as it is or with reconstructions spliced in."""

from collections.abc import Callable, Sequence, Set
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_lightning.data.batch import Hooks
from sae_lightning.errors import InputError
from sae_lightning.transformers.hooks import forward
from sae_lightning.transformers.predictions import going_on_with, observing


class Sampling(NamedTuple):
    """How tokens are drawn: from softmax(logits / temperature), the likeliest one where it is 0, …"""

    temperature: float = 1.0
    top_p: float = 1.0
    """… of the smallest set of tokens whose probabilities sum to this or more."""
    max_tokens: int = 50


class Reader:
    """A transformer that reads one text bit by bit, and keeps keys and values of what it has read."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, " vocabulary"]:
        """Logits of the token after the next n. Errors: InputError for a transformer that keeps no keys and values."""
        out = forward(self.model, ids, past_key_values=self.cache, use_cache=True)
        self.cache = getattr(out, "past_key_values", None)
        if self.cache is None:
            raise InputError(f"{type(self.model).__name__} keeps no keys and values, and cannot write text here: leave generate_text out")
        return out.logits[0, -1]


class SplicedReader:
    """The same with function(x) in place of y; x, y: rows at the hook points, x as it is in the plain transformer.

    `widths`: of y's hook points. The first `unspliced` positions of the text and special tokens stay as they are.
    """

    def __init__(self, model: nn.Module, hooks: Hooks, widths: Sequence[int], function: Callable[[Tensor], Tensor],
                 special: Set[int] = frozenset(), unspliced: int = 0):  # fmt: skip
        self.hooks, self.widths, self.function, self.unspliced = hooks, list(widths), function, unspliced
        self.special = torch.tensor(sorted(special), dtype=torch.int64)
        self.plain, self.spliced = Reader(model), Reader(model)
        self.model, self.done = model, 0

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "1 n"]) -> Float[Tensor, " vocabulary"]:
        """Logits of the token after the next n."""
        position = torch.arange(self.done, self.done + ids.shape[1])
        special = torch.isin(ids.cpu(), self.special) | (position < self.unspliced)
        with observing(self.model, special, self.hooks.x) as found:
            self.plain(ids)
        y_hat = self.function(torch.cat([found[hook] for hook in self.hooks.x], dim=1)).split(self.widths, dim=1)
        with going_on_with(self.model, special, self.hooks.y, y_hat):
            logits = self.spliced(ids)
        self.done += ids.shape[1]
        return logits


def continued(
    reader: Callable[[Tensor], Tensor], prompt: Sequence[int], sampling: Sampling, ends: Set[int], g: torch.Generator, device: torch.device
) -> list[int]:
    """The prompt and the tokens that follow it, up to one of `ends`, which is left out."""
    ids, new = list(prompt), list(prompt)
    for _ in range(sampling.max_tokens):
        token = draw(reader(torch.tensor([new], device=device)), sampling, g)
        if token in ends:
            break
        ids.append(token)
        new = [token]
    return ids


def draw(logits: Float[Tensor, " vocabulary"], sampling: Sampling, g: torch.Generator) -> int:
    """argmax_j p_j / q_j with q_j ~ Exp(1): token j with probability p_j.

    Each token has a q_j of its own, so that with generators of one seed, predictions that are equal give one token, and those that
    hardly differ mostly do.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(float(sampling.temperature))(None, logits.float()[None])  # type: ignore[arg-type]
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(float(sampling.top_p))(None, scores)  # type: ignore[arg-type]
    p = scores.softmax(1)[0].cpu()
    return int((p / torch.empty_like(p).exponential_(generator=g)).argmax())
