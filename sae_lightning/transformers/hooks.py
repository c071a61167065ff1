"""Reading activations out of a transformer and writing them back in.

A hook point is a module path, which means the module's output ("model.layers.1"), or a module path and ":in", which means its
first input ("model.layers.1.mlp:in"). Where a module returns or takes several things, the first one is meant.
"""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_lightning.errors import InputError

INPUT = ":in"


class _DeepestReached(Exception):
    """Ends a forward pass as soon as every hook point was read."""


def read(model: nn.Module, hooks: Sequence[str], input_ids: Int[Tensor, "batch context"]) -> dict[str, Float[Tensor, "batch context d"]]:
    """Activations at the hook points, in the transformer's dtype and without gradients.

    One forward pass, which stops after the deepest hook point. Errors: InputError for a hook point that the transformer does not
    have, that its forward pass never reaches, or that is not [batch, context, d].
    """
    return read_inputs(model, hooks, input_ids.shape, called_with(input_ids))


def called_with(input_ids: Int[Tensor, "batch context"]) -> dict[str, Any]:
    """How a causal language model is called for its activations alone."""
    # without a cache, transformers looks at the values of the positions: on the meta device there are none
    return {"input_ids": input_ids, "use_cache": input_ids.is_meta}


def read_inputs(
    model: nn.Module, hooks: Sequence[str], shape: Sequence[int], inputs: Mapping[str, Any]
) -> dict[str, Float[Tensor, "batch context d"]]:
    """The same of a model that is called with `inputs`, which have rows for `shape` = [batch, context]. Errors: as `read`."""
    modules = {hook: module_at(model, hook) for hook in hooks}
    found: dict[str, Tensor] = {}

    def keep(hook: str, activation: Tensor) -> None:
        found.setdefault(hook, _checked(hook, activation, shape).detach())
        if len(found) == len(modules):
            raise _DeepestReached

    with contextlib.ExitStack() as stack, torch.no_grad():
        for hook, module in modules.items():
            stack.enter_context(_removed_after(_attach(module, hook, lambda activation, hook=hook: keep(hook, activation))))
        with contextlib.suppress(_DeepestReached):
            model(**inputs)
    for hook in hooks:
        if hook not in found:
            raise InputError(f"the transformer's forward pass never reaches hook point '{hook}': choose another one")
    return {hook: found[hook] for hook in hooks}


@contextlib.contextmanager
def splice(
    model: nn.Module,
    hook: str,
    function: Callable[[Float[Tensor, "n d"]], Float[Tensor, "n d"]],
    special: Bool[Tensor, "batch context"] | None = None,
) -> Iterator[None]:
    """While open, every forward pass of `model` goes on with function(rows) in place of the activation at the hook point.

    `function` gets the rows in float32, at all positions but those where `special` is true: these stay as they are. The forward
    passes inside must have the batch and context of `special`. Gradients flow through `function`. Where `special` lies on the CPU,
    nothing waits for another device. Errors: InputError for a hook point that does not exist.
    """

    def replace(activation: Tensor) -> Tensor:
        if special is None:
            rows = activation.reshape(-1, activation.shape[-1])
            return function(rows.float()).to(activation.dtype).view_as(activation)
        rows = activation.flatten(0, 1)
        kept = (~special).flatten().nonzero()[:, 0].to(rows.device, non_blocking=True)
        return rows.index_copy(0, kept, function(rows[kept].float()).to(rows.dtype)).view_as(activation)

    with _removed_after(_attach(module_at(model, hook), hook, replace)):
        yield


def unembedding(model: nn.Module) -> nn.Linear | None:
    """The last linear layer of a transformer, where it says which it is."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return found if isinstance(found, nn.Linear) else None


def module_at(model: nn.Module, hook: str) -> nn.Module:
    """The module of a hook point. Errors: InputError with the nearest module paths."""
    path = hook.removesuffix(INPUT)
    modules = dict(model.named_modules())
    if path and path in modules:
        return modules[path]
    nearest = difflib.get_close_matches(path, modules, n=3, cutoff=0.0)
    raise InputError(f"hook point '{hook}' is not in this transformer: the nearest modules are {', '.join(nearest)}")


@contextlib.contextmanager
def _removed_after(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _attach(module: nn.Module, hook: str, function: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Calls `function` with the activation whenever the module runs; a tensor that it returns takes the activation's place."""

    def on_output(_: nn.Module, __: Any, output: Any) -> Any:
        activation = output if isinstance(output, Tensor) else output[0]
        replaced = function(activation)
        if replaced is None:
            return None
        return replaced if isinstance(output, Tensor) else (replaced, *output[1:])

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args:
            replaced = function(args[0])
            return None if replaced is None else ((replaced, *args[1:]), kwargs)
        first = next(iter(kwargs))
        replaced = function(kwargs[first])
        return None if replaced is None else (args, kwargs | {first: replaced})

    if hook.endswith(INPUT):
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)


def _checked(hook: str, activation: Any, shape: Sequence[int]) -> Tensor:
    is_rows = isinstance(activation, Tensor) and activation.ndim == 3 and activation.is_floating_point()
    if is_rows and tuple(activation.shape[:2]) == tuple(shape):
        return activation
    what = list(activation.shape) if isinstance(activation, Tensor) else type(activation).__name__
    raise InputError(
        f"hook point '{hook}' gives {what}, not a row for each token [batch, context, d]:"
        " choose the output of a layer, of an MLP or of an attention block"
    )
