"""What a transformer loses when it has to go on with reconstructions."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.data.batch import Hooks
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import check_widths
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hooks import read
from sae_lightning.transformers.predictions import counted, predictions, with_reconstructions

UNIGRAM_SEQUENCES = 4096
CHUNK = 512
"""Positions whose log-probabilities over the vocabulary are held at once."""


class Text(NamedTuple):
    """Held-out sequences, the transformer that reads them, and where."""

    model: nn.Module
    hooks: Hooks
    widths: tuple[int, ...]
    """Of the hook points of y."""
    input_ids: Int[Tensor, "n context"]
    special: Bool[Tensor, "n context"]
    batch_tokens: int

    def batches(self) -> Iterator[tuple[Int[Tensor, "batch context"], Bool[Tensor, "batch context"]]]:
        at_once = max(1, self.batch_tokens // self.input_ids.shape[1])
        return zip(self.input_ids.split(at_once), self.special.split(at_once), strict=True)


class Comparison(NamedTuple):
    """Means over the predicted tokens, in nats: of the transformer as it is (clean), of the spliced one, and between them."""

    tokens: float
    ce_clean: float
    ce: float
    accuracy_clean: float
    accuracy: float
    entropy_clean: float
    entropy: float
    kl: float
    top1_agreement: float


class _Reference(NamedTuple):
    """What does not depend on the SAE."""

    data: RowsDataModule
    text: Text
    ce_unigram: float
    ce_zero: float
    ce_mean: float


class Downstream:
    """Cross-entropy of the next token, in nats, with reconstructions spliced in at the hook point.

    Of a transcoder: at y's hook point, made of x's. Of a crosscoder: at all its hook points in one forward pass, made of what stands at
    them in a clean one.

        ce_clean, ce_sae, ce_ablated (zeros), ce_ablated_mean (the mean activation);   delta_ce = ce_sae − ce_clean
        ce_recovered = (ce_ablated − ce_sae)/(ce_ablated − ce_clean);   ce_recovered_mean: the same from ce_ablated_mean
        perplexity, token_accuracy, entropy of the spliced transformer, and …_clean of the clean one
        kl = mean KL(clean ‖ spliced);   top1_agreement = share of positions where both find the same token likeliest
        ce_unigram = of the token frequencies of the held-out text: a clean CE near it means a text that the transformer does not know
        tokens (predicted ones), context_length

    Special positions are neither spliced nor counted, nor is a token that is predicted from one. At most `max_tokens` of held-out
    sequences (but one sequence at least), `batch_tokens` in a forward pass. Data without a transformer gives {}.
    """

    def __init__(self, max_tokens: int = 8192, batch_tokens: int = 2048):
        if max_tokens < 1 or batch_tokens < 1:
            raise InputError(f"evaluate.downstream: max_tokens={max_tokens} and batch_tokens={batch_tokens} must be positive")
        self.max_tokens, self.batch_tokens = max_tokens, batch_tokens
        self._reference: _Reference | None = None

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        if data.transformer is None:
            return {}
        check_widths(sae, data)
        if self._reference is None or self._reference.data is not data:
            text = read_text(data, sae.b_enc.device, self.max_tokens, self.batch_tokens)
            mean = mean_activation(text)
            own, zero, average = compare(text, [sae, lambda x: mean.new_zeros(len(x), len(mean)), lambda x: mean.expand(len(x), -1)])
            self._reference = _Reference(data, text, _ce_unigram(data, text), zero.ce, average.ce)
        else:
            (own,) = compare(self._reference.text, [sae])
        return _scores(own, self._reference)


def read_text(data: RowsDataModule, device: torch.device, max_tokens: int, batch_tokens: int) -> Text:
    """At most `max_tokens` of held-out sequences (but one sequence at least), and the transformer, on `device`.

    Errors: InputError where there is no token to predict, and as loading.
    """
    context = data.tokens_held_out(1)[0].shape[1]
    ids, special = data.tokens_held_out(min(max(1, max_tokens // context), UNIGRAM_SEQUENCES))
    if not len(counted(special)):
        raise InputError("the held-out sequences have no token to predict: give the data a longer text or a longer context")
    return Text(data.transformer.load(device), data.hooks, data.shape.y, ids.to(device), special.to(device), batch_tokens)


def _ce_unigram(data: RowsDataModule, text: Text) -> float:
    ids, special = data.tokens_held_out(UNIGRAM_SEQUENCES)
    return unigram_ce(ids[~special], text.input_ids.flatten()[counted(text.special) + 1].cpu())


def _scores(own: Comparison, reference: _Reference) -> dict[str, float]:
    zero, mean = reference.ce_zero, reference.ce_mean
    return {
        "ce_clean": own.ce_clean,
        "ce_sae": own.ce,
        "ce_ablated": zero,
        "ce_ablated_mean": mean,
        "ce_recovered": _ratio(zero - own.ce, zero - own.ce_clean),
        "ce_recovered_mean": _ratio(mean - own.ce, mean - own.ce_clean),
        "delta_ce": own.ce - own.ce_clean,
        "kl": own.kl,
        "top1_agreement": own.top1_agreement,
        "perplexity": _exp(own.ce),
        "perplexity_clean": _exp(own.ce_clean),
        "token_accuracy": own.accuracy,
        "token_accuracy_clean": own.accuracy_clean,
        "entropy": own.entropy,
        "entropy_clean": own.entropy_clean,
        "ce_unigram": reference.ce_unigram,
        "tokens": own.tokens,
        "context_length": float(reference.text.input_ids.shape[1]),
    }


@torch.no_grad()
def compare(
    text: Text, functions: Sequence[Callable[[Tensor], Tensor]], reference: Callable[[Tensor], Tensor] | None = None
) -> list[Comparison]:
    """The transformer as it is against the transformer with function(x) in place of y, for each function; x, y: rows at the hook points.

    x is that of the transformer as it is. `reference`: what is called clean is the transformer with reference(x) in place of y.
    """
    sums = torch.zeros(len(functions), 9, dtype=torch.float64)
    for ids, special in text.batches():
        targets = ids.flatten()[counted(special) + 1]
        x = rows_at(text, text.hooks.x, ids, special)
        clean = predictions(text.model, ids, special) if reference is None else _spliced(text, ids, special, reference(x))
        for function, own in zip(functions, sums, strict=True):
            spliced = _spliced(text, ids, special, function(x))
            for part in zip(clean.split(CHUNK), spliced.split(CHUNK), targets.split(CHUNK), strict=True):
                own += _sums(*part).cpu()
    return [Comparison(float(own[0]), *(own[1:] / own[0]).tolist()) for own in sums]


def _spliced(
    text: Text, ids: Int[Tensor, "batch context"], special: Bool[Tensor, "batch context"], y_hat: Float[Tensor, "rows d_out"]
) -> Float[Tensor, "n vocabulary"]:
    return with_reconstructions(text.model, ids, special, text.hooks.y, y_hat.split(text.widths, dim=1))


def _sums(clean: Float[Tensor, "n vocabulary"], spliced: Float[Tensor, "n vocabulary"], targets: Int[Tensor, " n"]) -> Float[Tensor, " 9"]:
    p, q = clean.float().log_softmax(1), spliced.float().log_softmax(1)
    values = [
        torch.ones(len(targets), device=targets.device),
        F.nll_loss(p, targets, reduction="none"),
        F.nll_loss(q, targets, reduction="none"),
        p.argmax(1) == targets,
        q.argmax(1) == targets,
        -(p.exp() * p).sum(1),
        -(q.exp() * q).sum(1),
        (p.exp() * (p - q)).sum(1),
        p.argmax(1) == q.argmax(1),
    ]
    return torch.stack([value.sum(dtype=torch.float64) for value in values])


def rows_at(
    text: Text, hooks: Sequence[str], ids: Int[Tensor, "batch context"], special: Bool[Tensor, "batch context"]
) -> Float[Tensor, "n d"]:
    """What stands at the hook points, side by side, special positions left out."""
    activations = read(text.model, hooks, ids)
    return torch.cat([activations[hook][~special].float() for hook in hooks], dim=1)


def mean_activation(text: Text) -> Float[Tensor, " d_out"]:
    """The mean row of y, special positions left out."""
    total, rows = torch.zeros((), dtype=torch.float64, device=text.input_ids.device), 0
    for ids, special in text.batches():
        activations = rows_at(text, text.hooks.y, ids, special)
        total, rows = total + activations.sum(0, dtype=torch.float64), rows + len(activations)
    return (total / max(rows, 1)).float()


def unigram_ce(text: Int[Tensor, " n"], targets: Int[Tensor, " m"]) -> float:
    """Cross-entropy of `targets` under the token frequencies of `text`, which holds them, in nats."""
    counts = torch.bincount(text, minlength=int(targets.max()) + 1).double()
    return float(-(counts[targets] / counts.sum()).log().mean())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
