"""JumpReLU against its equations, in float64; its calibration; what cannot be."""

import itertools
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.jumprelu import JumpReLU
from sae_lightning.models.straight_through import heaviside, jump_relu
from tests.models.build import BATCH, gradients, rows
from tests.models.cases.jumprelu import jumprelu

WEIGHT = 0.25 * 10 / 40  # λ in the midst of its warm-up


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(("penalty", "target", "to_input"), [("l0", None, False), ("l0", None, True), ("target", 3.0, False),
                                                             ("target", 20.0, True), ("tanh", None, False)])  # fmt: skip
def test_it_has_the_gradient_of_its_equations(penalty: str, target: float | None, to_input: bool, sparse: bool) -> None:
    x, sae = rows(), jumprelu(sparse, penalty, target, gradient_to_input=to_input)
    got = gradients(sae, x)
    d, theta, eps = sae.dictionary, sae.threshold.detach(), 0.5
    W, b, c, V = (p.detach() for p in (d.W_enc, d.b_enc, d.b_dec, d.W_dec))
    h = x @ W.T + b  # b_dec is not subtracted
    on, rect = (h > theta).double(), ((h - theta).abs() < eps / 2).double()
    assert (rect * (1 - on)).sum() > 5, "entries below θ inside the kernel must be among what is tested"
    e, norms = x - (h * on) @ V - c, V.norm(dim=1)
    l0, goal = on.sum() / BATCH, target or 1.0
    g = -2 / BATCH * e @ V.T  # ∂L/∂f
    dW_dec = (h * on).T @ (-2 / BATCH * e)
    if penalty == "tanh":
        slope = WEIGHT / BATCH * 4 * (1 - (4 * h * on * norms).tanh().square())
        g, dW_dec = g + slope * norms, dW_dec + (slope * h * on).sum(0)[:, None] * V / norms[:, None]
        dl0, value = 0.0, (4 * h * on * norms).tanh().sum() / BATCH
    else:
        dl0 = WEIGHT / BATCH * (1.0 if penalty == "l0" else 2 * (l0 / goal - 1) / goal)
        value = l0 if penalty == "l0" else (l0 / goal - 1) ** 2
    dh = g * on + (dl0 / eps * rect if to_input else 0)
    wanted = {
        "threshold": (-g * theta / eps * rect).sum(0) - dl0 / eps * rect.sum(0),
        "dictionary.W_dec": dW_dec,
        "dictionary.W_enc": dh.T @ x,
        "dictionary.b_enc": dh.sum(0),
        "dictionary.b_dec": (-2 / BATCH * e).sum(0),
    }
    assert_close(got, {name: wanted[name] for name in got}, rtol=1e-10, atol=1e-12)
    assert_close(sae.step(x, x).loss.detach(), e.square().sum(1).mean() + WEIGHT * value)


@pytest.mark.parametrize("to_input", [True, False])
def test_the_step_and_the_jump_have_their_kernels(to_input: bool) -> None:
    """θ = 1, ε = 0.4: of 0.7, 0.9, 1.1, 1.3 the middle two lie inside; the step is 1/ε = 2.5 there, the jump θ/ε = 2.5, too."""
    h = torch.tensor([0.7, 0.9, 1.1, 1.3], dtype=torch.float64, requires_grad=True)
    theta = torch.ones(4, dtype=torch.float64, requires_grad=True)
    width = torch.tensor(0.4, dtype=torch.float64)
    step = heaviside(h, theta, width, to_input)
    assert step.tolist() == [0, 0, 1, 1]
    found = torch.autograd.grad(step.sum(), (h, theta), allow_unused=True)
    assert_close(found[1], torch.tensor([0, -2.5, -2.5, 0], dtype=torch.float64))
    assert_close(
        found[0] if to_input else torch.zeros(4), torch.tensor([0, 2.5, 2.5, 0]) if to_input else torch.zeros(4), check_dtype=False
    )
    jumped = jump_relu(h, theta, width)
    found = torch.autograd.grad(jumped.sum(), (h, theta))
    assert_close(found[0], torch.tensor([0.0, 0, 1, 1], dtype=torch.float64))
    assert_close(found[1], torch.tensor([0, -2.5, -2.5, 0], dtype=torch.float64))


def test_l0_learns_from_both_sides_of_the_threshold() -> None:
    """A batch whose h lie just below θ: evaluated on f, which is 0 there, the step would have no gradient."""
    sae = jumprelu(True, "l0")
    x = rows()
    with torch.no_grad():
        sae.threshold.copy_(sae.dictionary.encode(x).h.max(0).values + 0.1)
    step = sae.step(x, x)
    assert step.latents.fires().sum() == 0
    sae.zero_grad()
    step.losses["sparsity"].value.backward()
    assert sae.threshold.grad is not None
    assert (sae.threshold.grad < 0).all()


def test_a_threshold_at_zero_still_has_a_gradient_and_is_clamped_after_the_step() -> None:
    """Clamped in the graph, one at or below 0 would have none, and stay there."""
    sae = jumprelu(None, "l0")
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(-0.2, 0.2, len(sae.threshold)))
    sae.zero_grad()
    sae.step(rows(), rows()).losses["sparsity"].value.backward()
    assert sae.threshold.grad is not None
    assert (sae.threshold.grad[sae.threshold <= 0] < 0).all()
    sae.after_step_({"fires": torch.zeros(24, dtype=torch.int64), "rows": torch.tensor(16)})
    assert sae.threshold.min() == 0


def test_the_weight_rises_over_the_warmup() -> None:
    sae = jumprelu(None, "l0", warmup=0.05)
    sae.begin_(400)
    sae.steps_done.zero_()
    sums, weights = {"fires": torch.zeros(24, dtype=torch.int64), "rows": torch.tensor(16)}, []
    for _ in range(22):
        weights.append(float(sae.step(rows(), rows()).losses["sparsity"].weight))
        sae.after_step_(sums)
    assert_close(torch.tensor(weights), 0.25 * (torch.arange(22) / 20).clamp(max=1))  # 5 % of 400


def on_noise(**settings) -> JumpReLU:
    return JumpReLU(partial(Dictionary, Shape((16,), (16,)), d_sae=128), **settings)


@pytest.mark.parametrize(("settings", "l0"), [({"target_l0": 4.0}, 4.0), ({"penalty": "l0"}, 8.0), ({"penalty": "tanh"}, 8.0)])
def test_thresholds_start_at_the_target_or_at_half_the_width(settings: dict, l0: float) -> None:
    torch.manual_seed(0)
    sae, fresh = on_noise(**settings), torch.randn(20_000, 16)
    sae.calibrate_(torch.randn(65_536, 16))
    assert abs(float(sae.step(fresh, fresh).latents.l0_per_row().double().mean()) / l0 - 1) < 0.03
    assert_close(sae.width, 0.5 * sae.dictionary.encode(fresh).h.square().mean().sqrt(), rtol=0.05, atol=0)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_kernel_is_never_narrower_than_the_spacing_of_the_data(scale: float) -> None:
    """In any scale of the rows every threshold has pre-activations of a batch within its kernel: control is not dead."""
    torch.manual_seed(0)
    sae = on_noise(target_l0=4.0)
    sae.calibrate_(scale * torch.randn(8192, 16))
    x = scale * torch.randn(1024, 16)
    h = sae.dictionary.encode(x).h
    occupied = ((h - sae.threshold).abs() < sae.width / 2).sum(0)
    assert occupied.min() >= 1
    assert occupied.double().mean() > 10


def test_own_parameters_of_the_revived_are_typical() -> None:
    sae, alive = on_noise(target_l0=4.0), torch.arange(128) >= 100
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(0, 1, 128))
    sae.after_revival_(torch.tensor([3, 5]), alive)
    assert_close(sae.threshold[[3, 5]], sae.threshold[alive].median().expand(2))


@pytest.mark.parametrize(("sparse", "subtract"), [*itertools.product([True, False], [True, False])])
def test_the_threshold_term_is_its_equation(sparse: bool, subtract: bool) -> None:
    from tests.models.cases.lagrangian import lagrangian

    sae = lagrangian(sparse, threshold_revival=0.2) if subtract else jumprelu(sparse, threshold_revival=0.2)
    x, d = rows(), sae.dictionary
    value = sae.step(x, x).losses["dead_thresholds"].value
    sae.zero_grad()
    value.backward()
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V, theta = (p[name] for name in ("dictionary.W_enc", "dictionary.b_enc", "dictionary.b_dec", "dictionary.W_dec", "threshold"))
    h = (x - (c if subtract else 0)) @ W.T + b
    wanted = ((theta - h).relu() * V.norm(dim=1) * d.dead).sum(1).mean()
    wanted.backward()
    assert_close(value, wanted)
    for name, parameter in sae.named_parameters():
        if p[name].grad is not None:
            assert_close(parameter.grad, p[name].grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"target_l0": 0.0}, "target_l0"),
        ({"target_l0": 128.0}, "target_l0"),
        ({"target_l0": None}, "target_l0 is null"),
        ({"penalty": "l0"}, "target_l0=null"),
        ({"penalty": "tanh"}, "target_l0=null"),
        ({"sparsity": -1.0}, "sparsity"),
        ({"tanh_scale": -1.0}, "tanh_scale"),
        ({"threshold_revival": -1.0}, "threshold_revival"),
        ({"warmup": 1.5}, "warmup"),
        ({"bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"model.*{named}"):
        on_noise(**{"target_l0": 4.0, **wrong})
