"""What a transformer loses when it has to go on with reconstructions."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.evaluation.clean import CleanBatch, CleanPass, Text
from sae_lightning.evaluation.positions import position_bins
from sae_lightning.evaluation.steps import check_widths
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.predictions import counted, with_reconstructions

UNIGRAM_SEQUENCES = 4096
CHUNK = 512
"""Positions whose log-probabilities over the vocabulary are held at once."""


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
    clean: CleanPass
    ce_unigram: float


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
        delta_ce_at_position_00004, kl_at_position_00004: predicted from positions 4 to 7 of a sequence; so for 0, 1, 2 and all powers of 2
        delta_ce_at_<hook point>, kl_at_<hook point>: of a crosscoder, spliced in at this one alone

    Special positions are neither spliced nor counted, nor is a token that is predicted from one. At most `max_tokens` of held-out
    sequences (but one sequence at least), `batch_tokens` in a forward pass. Data without a transformer gives {}.
    What the transformer makes of the text without an SAE, and with zeros or the mean, is kept where the data keeps what belongs to it
    (`data.kept_in`): from the second SAE on, there is one forward pass for each.
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
            self._reference = _Reference(data, CleanPass(text, data.kept_in), _ce_unigram(data, text))
        clean = self._reference.clean
        if "ce_ablated" not in clean.numbers:
            own, zero, mean = compare(
                clean, [sae, lambda x: torch.zeros_like(clean.mean).expand(len(x), -1), lambda x: clean.mean.expand(len(x), -1)]
            )
            clean.keep(ce_ablated=zero.whole.ce, ce_ablated_mean=mean.whole.ce)
        else:
            (own,) = compare(clean, [sae])
        return _scores(own, self._reference) | self._by_hook(sae, clean)

    def _by_hook(self, sae: InferenceSAE, clean: CleanPass) -> dict[str, float]:
        hooks = clean.text.hooks.y
        if len(hooks) == 1:
            return {}
        found = [compare(clean, [sae], at=[hook])[0].whole for hook in hooks]
        values = {f"delta_ce_at_{hook}": one.ce - one.ce_clean for hook, one in zip(hooks, found, strict=True)}
        return values | {f"kl_at_{hook}": one.kl for hook, one in zip(hooks, found, strict=True)}


def read_text(data: RowsDataModule, device: torch.device, max_tokens: int, batch_tokens: int) -> Text:
    """At most `max_tokens` of held-out sequences (but one sequence at least), and the transformer, on `device`.

    Errors: InputError where there is no token to predict, and as loading.
    """
    context = data.tokens_held_out(1)[0].shape[1]
    ids, special = data.tokens_held_out(min(max(1, max_tokens // context), UNIGRAM_SEQUENCES))
    if not len(counted(special)):
        raise InputError("the held-out sequences have no token to predict: give the data a longer text or a longer context")
    model, identity = data.transformer.load(device), data.transformer.identity()
    return Text(model, identity, data.hooks, data.shape.y, ids.to(device), special.to(device), batch_tokens)


def _ce_unigram(data: RowsDataModule, text: Text) -> float:
    ids, special = data.tokens_held_out(UNIGRAM_SEQUENCES)
    return unigram_ce(ids[~special], text.input_ids.flatten()[counted(text.special) + 1].cpu())


def _scores(comparison: "Compared", reference: _Reference) -> dict[str, float]:
    own, numbers = comparison.whole, reference.clean.numbers
    zero, mean = numbers["ce_ablated"], numbers["ce_ablated_mean"]
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
        "context_length": float(reference.clean.text.input_ids.shape[1]),
        **{f"delta_ce_{place}": one.ce - one.ce_clean for place, one in comparison.by_position.items()},
        **{f"kl_{place}": one.kl for place, one in comparison.by_position.items()},
    }


class Compared(NamedTuple):
    """Over all predicted tokens, and by the position that they are predicted from (bins without one are left out)."""

    whole: Comparison
    by_position: dict[str, Comparison]


@torch.no_grad()
def compare(
    clean: CleanPass,
    functions: Sequence[Callable[[Tensor], Tensor]],
    reference: Callable[[Tensor], Tensor] | None = None,
    at: Sequence[str] | None = None,
) -> list[Compared]:
    """The transformer as it is against the transformer with function(x) in place of y, for each function; x, y: rows at the hook points.

    x is that of the transformer as it is. `reference`: what is called clean is the transformer with reference(x) in place of y. `at`: those
    of y's hook points that are replaced; None: all.
    """
    text = clean.text
    names, of_position = position_bins(text.input_ids.shape[1])
    sums = torch.zeros(len(functions), len(names), 9, dtype=torch.float64, device=text.input_ids.device)
    for batch in clean.batches():
        bins = of_position.to(sums.device)[counted(batch.special) % len(of_position)]
        unspliced = batch.logits if reference is None else _spliced(text, batch, reference(batch.x), at)
        for function, own in zip(functions, sums, strict=True):
            spliced = _spliced(text, batch, function(batch.x), at)
            parts = (unspliced.split(CHUNK), spliced.split(CHUNK), batch.targets.split(CHUNK))
            for some, *part in zip(bins.split(CHUNK), *parts, strict=True):
                own.index_add_(0, some, _numbers(*part))
    return [_compared(names, own) for own in sums.cpu()]


def _spliced(text: Text, batch: CleanBatch, y_hat: Float[Tensor, "rows d_out"], at: Sequence[str] | None) -> Float[Tensor, "n vocabulary"]:
    places = [(hook, rows) for hook, rows in zip(text.hooks.y, y_hat.split(text.widths, dim=1), strict=True) if at is None or hook in at]
    return with_reconstructions(text.model, batch.input_ids, batch.special, *zip(*places, strict=True))


def _compared(names: Sequence[str], sums: Float64[Tensor, "bins 9"]) -> Compared:
    def means(own: Float64[Tensor, " 9"]) -> Comparison:
        return Comparison(float(own[0]), *(own[1:] / own[0]).tolist())

    return Compared(means(sums.sum(0)), {name: means(own) for name, own in zip(names, sums, strict=True) if own[0] > 0})


def _numbers(
    clean: Float[Tensor, "n vocabulary"], spliced: Float[Tensor, "n vocabulary"], targets: Int[Tensor, " n"]
) -> Float64[Tensor, "n 9"]:
    """Of each token, in the order of `Comparison`."""
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
    return torch.stack([value.double() for value in values], dim=1)


def unigram_ce(text: Int[Tensor, " n"], targets: Int[Tensor, " m"]) -> float:
    """Cross-entropy of `targets` under the token frequencies of `text`, which holds them, in nats."""
    counts = torch.bincount(text, minlength=int(targets.max()) + 1).double()
    return float(-(counts[targets] / counts.sum()).log().mean())


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
