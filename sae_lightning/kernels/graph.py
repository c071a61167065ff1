"""torch.compile for steps whose number of entries depends on the data."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def compiled_step(step: Callable[P, R], **options) -> Callable[P, R]:
    """`step` through torch.compile, in one graph for any number of entries. `options` are torch.compile's.

    A whole number of a module that changes (k, on a schedule) is traced once more, as one that may change, and then never again.
    """
    inner = torch.compile(step, **options)

    @functools.wraps(step)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        # Without the first every operator with such an output breaks the graph; without the second every change is traced anew.
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, allow_unspec_int_on_nn_module=True):
            return inner(*args, **kwargs)

    return call
