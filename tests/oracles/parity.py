"""Reads what other libraries made of the small problem (make_golden.py), and sets our SAEs on the same weights and rows."""

from collections.abc import Callable
from functools import cache, partial

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.models.base import SAE, Step
from sae_lightning.models.dictionary import Dictionary
from tests.oracles.make_golden import GOLDEN, LATENTS, D

ROUNDING = {"rtol": 2e-4, "atol": 3e-6}
"""They compute in float32."""


@cache
def problem() -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in load_file(GOLDEN / "problem.safetensors").items()}


@cache
def _golden(library: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{library}.safetensors")


def golden(library: str, case: str) -> dict[str, Tensor]:
    """What it made of a case: `term.…`, `loss`, `grad.…`, in float64."""
    found = {name.removeprefix(f"{case}/"): tensor.double() for name, tensor in _golden(library).items() if name.startswith(f"{case}/")}
    assert found, f"{library} has no case {case}: run make oracles"
    return found


OUR_NAMES = {"b_gate": "b_enc"}
"""Of parameters that have another name in ours: a gate's bias is the encoder's."""


def ours(
    make: Callable[..., SAE], *, free: bool = False, dead: bool = False, gate: bool = False, sparse: bool | None = False, **buffers: float
) -> SAE:
    """Our SAE in float64 with the problem's weights; `free` and `dead` as in make_golden.case; `gate`: the encoder's bias is the gate's.

    `buffers`: state of the architecture that the problem says.
    """
    given = problem()
    sae = make(partial(Dictionary, Shape((D,), (D,)), d_sae=LATENTS, dead_after=100, sparse=sparse)).double()
    values = given | ({"W_dec": given["free.W_dec"]} if free else {}) | ({"b_enc": given["b_gate"]} if gate else {})
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(values[name.removeprefix("dictionary.")])
        for name, value in buffers.items():
            sae.get_buffer(name).fill_(value)
        if dead:
            sae.dictionary.rows_since_fired[given["dead"].bool()] = 1 << 40
    return sae


def steps(sae: SAE, terms: dict[str, float] | None = None) -> tuple[Step, dict[str, Tensor]]:
    """A step on the problem's rows, and the gradients of its loss (or of these terms, with these weights) by their names in the goldens."""
    x = problem()["x"]
    sae.zero_grad()
    step = sae.step(x, x)
    loss = step.loss if terms is None else sum(weight * step.losses[name].value for name, weight in terms.items())
    assert isinstance(loss, Tensor)
    loss.backward()
    return step, {
        name.removeprefix("dictionary."): torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in sae.named_parameters()
    }


def same_gradients(found: dict[str, Tensor], theirs: dict[str, Tensor], scale: float | Tensor = 1.0) -> None:
    """Our gradients times `scale` are theirs, for every parameter that they have."""
    expected = {OUR_NAMES.get(name, name): grad for name, grad in gradients_of(theirs).items()}
    assert set(expected) == set(found)
    for name, grad in expected.items():
        assert_close(found[name] * scale, grad, msg=lambda text, name=name: f"{name}: {text}", **ROUNDING)


def gradients_of(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names that parameters have in the problem."""
    return {name.removeprefix("grad."): grad for name, grad in theirs.items() if name.startswith("grad.")}
