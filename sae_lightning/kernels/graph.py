"""torch.compile for steps whose number of entries depends on the data."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def compiled_step(step: Callable[P, R], **options) -> Callable[P, R]:
    """`step` through torch.compile, in one graph for any number of entries. `options` are torch.compile's."""
    inner = torch.compile(step, **options)

    @functools.wraps(step)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):  # otherwise every such operator breaks the graph
            return inner(*args, **kwargs)

    return call
