"""The usage KL against its equations; dead latents get a gradient and move; what the KL alone leads to."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.usage_kl import UsageKL
from tests.models.build import BATCH, F, gradients, rows
from tests.models.cases.usage_kl import usage_kl

RHO, DELTA = 0.05, 1e-4


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("cap", [None, 0.4])
def test_it_has_the_gradient_of_its_equations(cap: float | None, sparse: bool) -> None:
    x, sae = rows(), usage_kl(sparse, cap=cap)
    got = gradients(sae, x)
    d, eps, ema = sae.dictionary, 1.0, sae.running_usage
    W, b, c, V = (p.detach() for p in (d.W_enc, d.b_enc, d.b_dec, d.W_dec))
    h = (x - c) @ W.T + b
    on, rect = ((h > 0) & (h < (cap or math.inf))).double(), (h.abs() < eps / 2).double()
    f = h.relu().clamp(max=cap or math.inf)
    assert (rect * (h < 0)).sum() > 5, "entries below 0 inside the kernel must be among what is tested"
    e = x - f @ V - c
    lam, kappa = 0.125 * 30 / 40, 0.05 + 1.45 * 30 / 40
    p = (1 - 2 * DELTA) * ema + DELTA
    kl = RHO * (RHO / p).log() + (1 - RHO) * ((1 - RHO) / (1 - p)).log()
    dp = kappa / F * (1 - 2 * DELTA) * (-RHO / p + (1 - RHO) / (1 - p)) / BATCH  # of one entry of the step function
    dh = (-2 / BATCH * e @ V.T + lam / BATCH) * on + dp / eps * rect
    wanted = {
        "dictionary.W_dec": f.T @ (-2 / BATCH * e),
        "dictionary.W_enc": dh.T @ (x - c),
        "dictionary.b_enc": dh.sum(0),
        "dictionary.b_dec": (-2 / BATCH * e).sum(0) - (dh @ W).sum(0),
    }
    assert_close(got, {name: wanted[name] for name in got}, rtol=1e-10, atol=1e-12)
    assert_close(sae.step(x, x).loss.detach(), e.square().sum(1).mean() + lam * f.sum() / BATCH + kappa * kl.mean())


def make(d_sae: int = 2, d: int = 2, **settings) -> UsageKL:
    return UsageKL(partial(Dictionary, Shape((d,), (d,)), d_sae=d_sae), **{"sparsity": 0.1, **settings})


@pytest.mark.parametrize("sparse", [True, False])
def test_worked_out_by_hand(sparse: bool) -> None:
    """x = (3, 1), (0, 2), W_enc = 1, b_enc = (0, −0.5), W_dec = (1, 0), (0.6, 0.8): h = (3, 0.5), (0, 1.5); cap 2: f = (2, 0.5), (0, 1.5)."""
    sae, x = make(usage=0.25, kappa=2.0, cap=2.0, momentum=0.5), torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    d = sae.dictionary
    d.sparse = sparse
    with torch.no_grad():
        d.W_enc.copy_(torch.eye(2))
        d.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
        d.b_enc.copy_(torch.tensor([0.0, -0.5]))
        sae.running_usage.copy_(torch.tensor([0.5, 0.125]))
        sae.width.fill_(1.25)  # |h| < 0.625: of latent 1 the 0 of row 2, of latent 2 the 0.5 of row 1
    step = sae.step(x, x)
    assert_close(step.latents.dense(), torch.tensor([[2.0, 0.5], [0.0, 1.5]]))
    # x̂ = (2.3, 0.4), (0.9, 1.2): e² = 0.49 + 0.36, 0.81 + 0.64, mean 1.15;   Σf = 2.5 and 1.5, mean 2
    assert_close(step.losses["reconstruction"].value, torch.tensor(1.15))
    assert_close(step.losses["sparsity"].value, torch.tensor(2.0))
    # p' = 0.9998 p + 0.0001 = 0.5, 0.125075
    # KL = ¼ ln(¼/½) + ¾ ln(¾/½) = −0.173287 + 0.304099 = 0.130812
    #      ¼ ln(¼/0.125075) + ¾ ln(¾/0.874925) = 0.173137 − 0.115549 = 0.057588;   mean 0.094200
    assert_close(step.losses["usage"].value, torch.tensor(0.0942), atol=1e-6, rtol=0)
    assert_close(step.loss, torch.tensor(1.15 + 0.1 * 2 + 2 * 0.0942), atol=1e-5, rtol=0)
    step.losses["usage"].value.backward()
    # ∂KL/∂p' = −ρ/p + (1−ρ)/(1−p) = −0.5 + 1.5 = 1 and −1.998801 + 0.857217 = −1.141584; times 0.9998, a half (mean over latents),
    # a half (mean over rows), 1/1.25 (one entry within the kernel): times 0.19996
    assert_close(d.b_enc.grad, torch.tensor([0.19996, -0.228271]), atol=1e-5, rtol=0)
    # EMA ← ½ (0.5, 0.125) + ½ (½, 1)
    sae.after_step_({"fires": torch.tensor([1, 2]), "rows": torch.tensor(2)})
    assert_close(sae.running_usage, torch.tensor([0.5, 0.5625]))


def buried(**settings) -> tuple[UsageKL, torch.Tensor]:
    """Sixteen latents of which the first four never fire, though some rows come near."""
    torch.manual_seed(0)
    sae, x = make(16, 8, sparsity=0.0, bandwidth=1.5, momentum=0.9, warmup_steps=0, **settings), torch.randn(512, 8)
    with torch.no_grad():
        h = sae.dictionary.encode(x).h
        sae.dictionary.b_enc[:4] -= h[:, :4].max(0).values + 0.05
    sae.calibrate_(x)
    return sae, x


def test_dead_latents_get_a_gradient_and_come_alive() -> None:
    sae, x = buried()
    d = sae.dictionary
    assert (sae.step(x, x).latents.fires()[:4] == 0).all()
    assert (sae.running_usage[:4] == 0).all()
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for i in range(200):
        optimizer.zero_grad()
        step = sae.step(x, x)
        step.losses["usage"].value.backward()
        if i == 0:
            assert (d.b_enc.grad[:4] < 0).all()
            assert (d.W_enc.grad[:4].norm(dim=1) > 0).all()
        optimizer.step()
        sae.after_step_({"fires": step.latents.fires(), "rows": torch.tensor(512)})
    assert (sae.step(x, x).latents.fires()[:4] > 0).all()


def test_by_booleans_the_term_would_train_nothing() -> None:
    """The original's usage is a mean of booleans; ours has the same value."""
    sae, x = buried()
    value = sae.step(x, x).losses["usage"].value
    boolean = sae._divergence(sae.dictionary.encode(x).above(1e9), len(x))  # no entry near 0: the running usage alone
    assert_close(value, boolean)
    assert not boolean.requires_grad or torch.autograd.grad(boolean, sae.dictionary.b_enc, allow_unused=True)[0].abs().max() == 0


def test_a_clamp_in_place_of_the_smoothing_would_kill_the_gradient_of_the_dead() -> None:
    sae, x = buried()
    sae.step(x, x).losses["usage"].value.backward()
    ours = sae.dictionary.b_enc.grad[:4].clone()
    p = torch.zeros(4, requires_grad=True)
    clamped = p.clamp(min=DELTA)
    (RHO * (RHO / clamped).log()).sum().backward()
    assert p.grad.abs().max() == 0
    assert (ours < 0).all()


def test_the_kl_alone_leads_to_an_l0_of_rho_times_the_number_of_latents() -> None:
    torch.manual_seed(0)
    sae = make(32, 8, sparsity=0.0, usage=0.125, momentum=0.8, warmup_steps=0)
    sae.calibrate_(torch.randn(4096, 8))
    optimizer = torch.optim.Adam([sae.dictionary.b_enc, sae.dictionary.W_enc], lr=1e-2)
    start = float(sae.running_usage.sum())
    for i in range(500):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / 500)
        x = torch.randn(512, 8)
        optimizer.zero_grad()
        step = sae.step(x, x)
        step.losses["usage"].value.backward()
        optimizer.step()
        sae.after_step_({"fires": step.latents.fires(), "rows": torch.tensor(512)})
    fresh = torch.randn(8192, 8)
    usage = sae.step(fresh, fresh).latents.fires() / 8192
    assert start > 12
    assert abs(float(usage.sum()) / (0.125 * 32) - 1) < 0.05
    assert_close(usage, torch.full((32,), 0.125), atol=0.03, rtol=0)


def test_kappa_rises_then_swings_and_lambda_rises() -> None:
    sae, x = make(kappa=1.05, kappa_floor=0.05, warmup_steps=10, period_steps=20), torch.randn(4, 2)
    kappa, lam = [], []
    for _ in range(41):
        losses = sae.step(x, x).losses
        kappa.append(float(losses["usage"].weight))
        lam.append(float(losses["sparsity"].weight))
        sae.after_step_({"fires": torch.zeros(2, dtype=torch.int64), "rows": torch.tensor(4)})
    assert [kappa[step] for step in (0, 5, 10, 15, 20, 25, 30, 40)] == pytest.approx([0.05, 0.55, 1.05, 0.55, 0.05, 0.55, 1.05, 0.05])
    assert [lam[step] for step in (0, 5, 10, 20)] == pytest.approx([0.0, 0.05, 0.1, 0.1])


@pytest.mark.parametrize(("steps", "warmup", "period"), [(100_000, 6000, 60_000), (66_000, 6000, 60_000), (1100, 100, 1000), (3, 0, 3)])
def test_short_runs_hold_a_warmup_and_a_period(steps: int, warmup: int, period: int) -> None:
    sae = make()
    sae.begin_(steps)
    assert (int(sae.warmup_steps), int(sae.period_steps)) == (warmup, period)
    given = make(warmup_steps=7, period_steps=9)
    given.begin_(steps)
    assert (int(given.warmup_steps), int(given.period_steps)) == (7, 9)


def test_the_cap_is_exported() -> None:
    sae = usage_kl(cap=0.4)
    exported = sae.to_inference()
    assert exported.cap == 0.4
    x = rows()
    assert_close(exported.encode(x).dense(), sae.step(x, x).latents.dense())
    assert exported.encode(x).dense().max() == 0.4


@pytest.mark.parametrize(
    "wrong",
    [{"sparsity": -1.0}, {"kappa": -1.0}, {"kappa_floor": -1.0}, {"warmup_steps": -1}, {"period_steps": -1}, {"cap": 0.0},
     {"bandwidth": 0.0}, {"usage": 0.0}, {"usage": 1.0}, {"momentum": 1.0}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"model.*{next(iter(wrong))}"):
        make(**wrong)
