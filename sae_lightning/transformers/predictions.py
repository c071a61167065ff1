"""What a transformer says of the next token, as it is or with a function of its rows spliced in: for evaluation and for fine-tuning."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_lightning.transformers.hooks import splice


def counted(special: Bool[Tensor, "batch context"]) -> Int[Tensor, " n"]:
    """Positions, numbered through the batch, that predict a token that counts: neither they nor the next one are special.

    On the device of `special`: on the CPU, nothing waits for another device.
    """
    counts = torch.zeros_like(special)
    counts[:, :-1] = ~(special[:, :-1] | special[:, 1:])
    return counts.flatten().nonzero()[:, 0]


def predictions(
    model: nn.Module,
    input_ids: Int[Tensor, "batch context"],
    special: Bool[Tensor, "batch context"],
    hook: str | None = None,
    function: Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]] | None = None,
) -> Float[Tensor, "n vocabulary"]:
    """Logits at the `counted` positions; with `function`, of a transformer that goes on with function(rows) at the hook point.

    Special positions are not spliced. Errors: InputError, as `splice`.
    """
    if hook is not None and function is not None:
        with splice(model, hook, function, special):
            return predictions(model, input_ids, special)
    logits = model(input_ids=input_ids, use_cache=False).logits
    return logits.flatten(0, 1)[counted(special).to(logits.device, non_blocking=True)]
