"""Reading activations out of a transformer and writing them back in.

A hook point is a module path, which means the module's output ("model.layers.1"), or a module path and ":in", which means its
first input ("model.layers.1.mlp:in"). Where a module returns or takes several things, the first one is meant. The names that
TransformerLens gives them ("blocks.1.hook_mlp_out") will do, in its own models and in those of Hugging Face (hook_names.py).
What torch.compile has made of a module is looked through, and runs as plain PyTorch while anything is read or written.
"""

import contextlib
import copy
import difflib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.errors import InputError
from sae_lightning.shapes import Bool, Float, Int
from sae_lightning.transformers.hook_names import is_name, to_path

INPUT = ":in"
COMPILED = "_orig_mod"
"""What torch.compile(module) calls the module."""


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
    places = {hook: place(model, hook) for hook in hooks}
    found: dict[str, Tensor] = {}

    def keep(hook: str, activation: Tensor) -> None:
        found.setdefault(hook, _checked(hook, activation, shape).detach())
        if len(found) == len(places):
            raise _DeepestReached

    with contextlib.ExitStack() as stack, torch.no_grad():
        for hook, where in places.items():
            stack.enter_context(_attached(where, lambda activation, hook=hook: keep(hook, activation)))
        with contextlib.suppress(_DeepestReached):
            _called(model, inputs)
    for hook in hooks:
        if hook not in found:
            raise InputError(f"the transformer's forward pass never reaches hook point '{hook}': choose another one")
    return {hook: found[hook] for hook in hooks}


@contextlib.contextmanager
def splice(
    model: nn.Module,
    hook: str,
    function: Callable[[Float[Tensor, "*rows d"]], Float[Tensor, "*rows d"] | None],
    special: Bool[Tensor, "*positions"] | None = None,
) -> Iterator[None]:
    """While open, every forward pass of `model` goes on with function(rows) in place of the activation at the hook point.

    `function` gets the rows as they stand there, [batch, context, d] in a transformer, in float32 (float64 where that is what they
    are). `special`, of the shape of the activation without its last axis: positions that stay as they are; `function` gets the other
    rows only, [n, d], and the forward passes inside must have that shape. Where `special` lies on the CPU, nothing waits for another
    device. A function that returns None changes nothing. Gradients flow through it. Errors: InputError for a hook point that does not
    exist.
    """

    def replace(activation: Tensor) -> Tensor | None:
        exact = torch.promote_types(activation.dtype, torch.float32)
        if special is None:
            replaced = function(activation.to(exact))
            return None if replaced is None else replaced.to(activation.dtype)
        rows = activation.flatten(0, -2)
        kept = (~special).flatten().nonzero()[:, 0].to(rows.device, non_blocking=True)
        replaced = function(rows[kept].to(exact))
        return None if replaced is None else rows.index_copy(0, kept, replaced.to(rows.dtype)).view_as(activation)

    with _attached(place(model, hook), replace):
        yield


def unembedding(model: nn.Module) -> nn.Linear | None:
    """The last linear layer of a transformer, where it says which it is."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    return found if isinstance(found, nn.Linear) else None


def forward(model: nn.Module, input_ids: Int[Tensor, "batch context"], **options: Any) -> Any:
    """model(input_ids=…, **options) of Hugging Face's; model(ids) of TransformerLens's, which call it `input` and have no such options."""
    return _called(model, {"input_ids": input_ids, **options})


def _called(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    is_lens = "input_ids" in inputs and "input" in inspect.signature(model.forward).parameters
    return model(inputs["input_ids"]) if is_lens else model(**inputs)


def logits(model: nn.Module, input_ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context vocabulary"]:
    """What it predicts after each token."""
    output = forward(model, input_ids, use_cache=False)
    return output if isinstance(output, Tensor) else output.logits


class Place(NamedTuple):
    """A hook point in a model. `path` is its module path, with ":in" where it is an input."""

    path: str
    module: nn.Module


def place(model: nn.Module, hook: str) -> Place:
    """Where a hook point is. Errors: InputError with the nearest module paths, and as `hook_names.to_path`."""
    modules: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        modules.setdefault(".".join(part for part in name.split(".") if part != COMPILED), module)
    modules |= getattr(model, "hook_dict", {})  # other names of TransformerLens for the same modules
    path = to_path(hook, modules) if is_name(hook) and hook not in modules else hook
    at = path.removesuffix(INPUT)
    if at and at in modules:
        return Place(path, modules[at])
    nearest = difflib.get_close_matches(at, modules, n=3, cutoff=0.0)
    raise InputError(f"hook point '{hook}' is not in this transformer: the nearest modules are {', '.join(nearest)}")


@contextlib.contextmanager
def _attached(where: Place, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """While open, calls `function` with the activation whenever the module runs; a tensor that it returns takes the activation's place."""

    def on_output(_: nn.Module, __: Any, output: Any) -> Any:
        replaced = function(_first(output))
        return None if replaced is None else _with_first(output, replaced)

    def on_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        replaced = function(_first(args or kwargs))
        if replaced is None:
            return None
        return (_with_first(args, replaced), kwargs) if args else (args, _with_first(kwargs, replaced))

    path, module = where
    is_input = path.endswith(INPUT)
    handle = module.register_forward_pre_hook(on_input, with_kwargs=True) if is_input else module.register_forward_hook(on_output)
    try:
        with _uncompiled():
            yield
    finally:
        handle.remove()


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """What is compiled already does not know of hooks that come later. (Where nothing is, asking torch.compile would take seconds.)"""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _first(several: Any) -> Any:
    """What a module returns or takes, or the first of it."""
    if isinstance(several, Tensor):
        return several
    return next(iter(several.values() if isinstance(several, Mapping) else several))


def _with_first(several: Any, value: Tensor) -> Any:
    """The same with `value` in its place."""
    if isinstance(several, Tensor):
        return value
    if isinstance(several, Mapping):
        changed: Any = copy.copy(several)
        changed[next(iter(several))] = value
        return changed
    if hasattr(several, "_replace"):  # a named tuple
        return several._replace(**{several._fields[0]: value})
    return type(several)([value, *several[1:]])


def _checked(hook: str, activation: Any, shape: Sequence[int]) -> Tensor:
    is_rows = isinstance(activation, Tensor) and activation.ndim == 3 and activation.is_floating_point()
    if is_rows and tuple(activation.shape[:2]) == tuple(shape):
        return activation
    what = list(activation.shape) if isinstance(activation, Tensor) else type(activation).__name__
    raise InputError(
        f"hook point '{hook}' gives {what}, not a row for each token [batch, context, d]:"
        " choose the output of a layer, of an MLP or of an attention block"
    )
