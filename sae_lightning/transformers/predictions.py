"""What a transformer says of the next token, as it is or with reconstructions spliced in: for evaluation and for fine-tuning."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.transformers.hooks import logits, splice


def counted(special: Bool[Tensor, "batch context"]) -> Int[Tensor, " n"]:
    """Positions, numbered through the batch, that predict a token that counts: neither they nor the next one are special.

    On the device of `special`: on the CPU, nothing waits for another device.
    """
    counts = torch.zeros_like(special)
    counts[:, :-1] = ~(special[:, :-1] | special[:, 1:])
    return counts.flatten().nonzero()[:, 0]


def predictions(
    model: nn.Module, input_ids: Int[Tensor, "batch context"], special: Bool[Tensor, "batch context"]
) -> Float[Tensor, "n vocabulary"]:
    """Logits at the `counted` positions."""
    predicted = logits(model, input_ids)
    return predicted.flatten(0, 1)[counted(special).to(predicted.device, non_blocking=True)]


def observed(
    model: nn.Module, input_ids: Int[Tensor, "batch context"], special: Bool[Tensor, "batch context"], hooks: Sequence[str]
) -> tuple[Float[Tensor, "n vocabulary"], dict[str, Float[Tensor, "rows _"]]]:
    """Predictions, and the rows (float32) that stood at each hook point, special positions left out. One forward pass.

    Errors: InputError, as `splice`.
    """
    with observing(model, special, hooks) as found:
        return predictions(model, input_ids, special), found


def with_reconstructions(
    model: nn.Module,
    input_ids: Int[Tensor, "batch context"],
    special: Bool[Tensor, "batch context"],
    hooks: Sequence[str],
    reconstructions: Sequence[Float[Tensor, "rows _"]],
) -> Float[Tensor, "n vocabulary"]:
    """Predictions of a transformer that goes on with these rows at these hook points, special positions left as they are.

    Gradients reach the rows. Errors: InputError, as `splice`.
    """
    with going_on_with(model, special, hooks, reconstructions):
        return predictions(model, input_ids, special)


@contextlib.contextmanager
def observing(
    model: nn.Module, special: Bool[Tensor, "batch context"], hooks: Sequence[str]
) -> Iterator[dict[str, Float[Tensor, "rows _"]]]:
    """The rows (float32) that stand at each hook point in the one forward pass inside, special positions left out.

    Errors: InputError, as `splice`.
    """
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for hook in dict.fromkeys(hooks):
            stack.enter_context(splice(model, hook, lambda rows, hook=hook: found.setdefault(hook, rows), special))
        yield found


@contextlib.contextmanager
def going_on_with(
    model: nn.Module, special: Bool[Tensor, "batch context"], hooks: Sequence[str], reconstructions: Sequence[Float[Tensor, "rows _"]]
) -> Iterator[None]:
    """The forward pass inside goes on with these rows at these hook points, special positions left as they are.

    Errors: InputError, as `splice`.
    """
    with contextlib.ExitStack() as stack:
        for hook, rows in zip(hooks, reconstructions, strict=True):
            stack.enter_context(splice(model, hook, lambda _, rows=rows: rows, special))
        yield
