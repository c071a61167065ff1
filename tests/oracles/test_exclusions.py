"""Where another library's terms are not an oracle: the definition, written out densely here and differentiated by
autograd in float64, is ours; and theirs is the definition with the one change that a test names."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.base import SAE
from sae_lightning.models.gated import Gated
from sae_lightning.models.jumprelu import JumpReLU
from sae_lightning.models.matryoshka import Matryoshka
from sae_lightning.models.p_anneal import PAnneal
from sae_lightning.models.topk import TopK
from tests.oracles.make_golden import BANDWIDTH, BATCH, GROUPS, LATENTS, SPARSITY, D, K
from tests.oracles.parity import OUR_NAMES, ROUNDING, golden, ours, problem, same_gradients, steps

Weights = dict[str, Tensor]
MakeSAE = Callable[..., SAE]
Penalty = Callable[[Weights, Tensor, Tensor], Tensor]
"""Of the weights, h and f."""


def leaves(*names: str, free: bool = False) -> Weights:
    """Fresh leaves with the problem's weights."""
    given = problem() | ({"W_dec": problem()["free.W_dec"]} if free else {})
    return {name: given[name].clone().requires_grad_() for name in names}


def gradients(loss: Tensor, w: Weights) -> Weights:
    found = torch.autograd.grad(loss, list(w.values()), allow_unused=True)
    return {name: torch.zeros_like(w[name]) if g is None else g for name, g in zip(w, found, strict=True)}


def differ(a: Tensor, b: Tensor) -> bool:
    """By more than rounding explains."""
    return bool(((a - b).abs() > 1e-2 * a.abs().max()).any())


# AuxK


def top_k_forward(w: Weights, relu: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Residual, pre-activations, and the rows explained by the k largest of each."""
    x = problem()["x"]
    h = (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    f = h.relu()
    f = f * torch.zeros_like(f).scatter(1, f.topk(K, dim=1).indices, 1.0)
    return x - f @ w["W_dec"] - w["b_dec"], h.relu() if relu else h, f


def explained_by_dead(w: Weights, h: Tensor) -> Tensor:
    """ê: the d/2 largest h of dead latents in each row, decoded without a bias."""
    dead = problem()["dead"].bool()
    chosen = torch.where(dead, h, -torch.inf).topk(D // 2, dim=1).indices
    return (h * torch.zeros_like(h).scatter(1, chosen, 1.0)) @ w["W_dec"]


NAMES = ("W_enc", "W_dec", "b_enc", "b_dec")


def test_auxk_is_a_share_of_what_is_left() -> None:
    """Σ‖ê − sg e‖² / Σ‖sg e − mean‖² for us; SAELens leaves the denominator out and takes h without relu."""
    w = leaves(*NAMES)
    e, h, _ = top_k_forward(w)
    variance = (e - e.mean(0)).square().sum(1).mean().detach()
    share = (explained_by_dead(w, h) - e.detach()).square().sum(1).mean() / variance
    step, found = steps(ours(lambda d: TopK(d, K, AuxK()), dead=True))
    assert_close(step.losses["auxk"].value, share)
    right = gradients(e.square().sum(1).mean() + share / 32, w)
    for name in NAMES:
        assert_close(found[name], right[name])

    theirs = golden("sae_lens", "topk, auxk")
    w = leaves(*NAMES)
    e, h, _ = top_k_forward(w, relu=False)
    plain = (explained_by_dead(w, h) - e.detach()).square().sum(1).mean()
    assert_close(plain, theirs["term.auxiliary_reconstruction_loss"], **ROUNDING)
    same_gradients(gradients(e.square().sum(1).mean() + plain, w), theirs)
    assert differ(plain, share)


def test_sparsifys_auxk_is_a_share_of_the_data_and_gives_the_encoder_nothing() -> None:
    """It divides by the variance of the rows and not of the residual, and its encoder's backward ignores all but the selected latents."""
    theirs, x = golden("sparsify", "topk, auxk"), problem()["x"]
    w = leaves(*NAMES)
    e, h, _ = top_k_forward(w, relu=True)
    total = (x - x.mean(0)).square().sum()
    share = (explained_by_dead(w, h.detach()) - e.detach()).square().sum() / total  # h.detach(): the missing gradient
    assert_close(share, theirs["term.auxk"], **ROUNDING)
    same_gradients(gradients(e.square().sum() / total + share / 32, w), theirs)
    _, found = steps(ours(lambda d: TopK(d, K, AuxK()), dead=True))
    dead = problem()["dead"].bool()
    assert float(theirs["grad.W_enc"][dead].abs().max()) == 0.0
    assert float(found["W_enc"][dead].norm(dim=1).max()) > 1e-4


# Matryoshka


def prefixes(w: Weights) -> tuple[list[Tensor], Tensor]:
    """Mean ‖x − x̂_m‖² of every prefix, the k·B largest latents of the batch being chosen once; and the residual of the last."""
    x = problem()["x"]
    h = ((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    f = h * torch.zeros(BATCH * LATENTS).double().index_fill(0, h.flatten().topk(K * BATCH).indices, 1.0).view_as(h)
    ends = torch.tensor(GROUPS).cumsum(0).tolist()
    residuals = [x - f[:, :end] @ w["W_dec"][:end] - w["b_dec"] for end in ends]
    return [e.square().sum(1).mean() for e in residuals], residuals[-1]


def test_matryoshka_is_the_mean_over_prefixes() -> None:
    """Σ w_m L_rec(m) with Σ w = 1 for us; SAELens sums, and dictionary_learning divides by the number of prefixes twice."""
    w = leaves(*NAMES)
    losses, _ = prefixes(w)
    mean = torch.stack(losses).mean()
    right = gradients(mean, w)
    step, found = steps(ours(lambda d: Matryoshka(d, K, [size / LATENTS for size in GROUPS])))
    assert_close(step.loss, mean)
    for name in NAMES:
        assert_close(found[name], right[name])

    theirs = golden("sae_lens", "matryoshka")
    assert_close(len(GROUPS) * mean, theirs["loss"], **ROUNDING)
    same_gradients(right, theirs, float(len(GROUPS)))
    theirs = golden("dictionary_learning", "matryoshka")
    assert_close(mean / len(GROUPS), theirs["loss"], **ROUNDING)
    same_gradients(right, theirs, 1 / len(GROUPS))


def test_matryoshkas_auxk_is_theirs() -> None:
    """Of dictionary_learning: on the residual of the whole dictionary; beside its smaller reconstruction loss it weighs four times as much."""
    theirs = golden("dictionary_learning", "matryoshka, auxk")
    step, found = steps(ours(lambda d: Matryoshka(d, K, [size / LATENTS for size in GROUPS], AuxK()), dead=True))
    assert_close(step.losses["auxk"].value, theirs["term.auxk_loss"], **ROUNDING)
    names = {name: 1 / len(GROUPS) ** 2 for name in step.losses if name != "auxk"}
    _, found = steps(ours(lambda d: Matryoshka(d, K, [size / LATENTS for size in GROUPS], AuxK()), dead=True), names | {"auxk": 1 / 32})
    same_gradients(found, theirs)


# Gated


def test_gateds_second_reconstruction_leaves_the_decoder_alone() -> None:
    """It decodes with sg(W_dec) and sg(b_dec), and decoder rows have norm 1, for us; SAELens detaches neither, so that the decoder is trained
    on latents that nobody uses, and its penalty Σ relu(π_j) ‖W_dec,j‖ pushes decoder rows too."""

    def loss(w: Weights, theirs: bool) -> Tensor:
        x = problem()["x"]
        rows = (x - w["b_dec"]) @ w["W_enc"].T
        gate = rows + w["b_gate"]
        f = (gate > 0) * (w["r_mag"].exp() * rows + w["b_mag"]).relu()
        W_dec, b_dec = (w["W_dec"], w["b_dec"]) if theirs else (w["W_dec"].detach(), w["b_dec"].detach())
        by_gate = gate.relu() @ W_dec + b_dec
        l1 = (gate.relu() * w["W_dec"].norm(dim=1) if theirs else gate.relu()).sum(1).mean()
        return (x - f @ w["W_dec"] - w["b_dec"]).square().sum(1).mean() + SPARSITY * l1 + (x - by_gate).square().sum(1).mean()

    names = ("W_enc", "W_dec", "b_gate", "b_mag", "r_mag", "b_dec")
    w = leaves(*names)
    right = gradients(loss(w, False), w)
    step, found = steps(ours(lambda d: Gated(d, SPARSITY), gate=True))
    assert_close(step.loss, loss(w, False))
    for name in names:
        assert_close(found[OUR_NAMES.get(name, name)], right[name])

    theirs = golden("sae_lens", "gated")
    assert_close(loss(w, True), theirs["loss"], **ROUNDING)
    wrong = gradients(loss(w, True), w)
    for name in names:
        assert_close(wrong[name], theirs[f"grad.{name}"], **ROUNDING)
    assert differ(wrong["W_dec"], right["W_dec"])


# JumpReLU


def jumps(w: Weights, to_input: bool = False) -> tuple[Tensor, Tensor]:
    """h, and f = h⟦h > θ⟧ whose gradient to θ is −(θ/ε) rect((h − θ)/ε); `to_input`: and the negated one to h."""
    h, theta = problem()["x"] @ w["W_enc"].T + w["b_enc"], w["threshold"]
    lent = (theta / BANDWIDTH * kernel(h, theta)).detach()
    return h, h * (h > theta) + lent * ((h - h.detach() if to_input else 0.0) - (theta - theta.detach()))


def kernel(u: Tensor, theta: Tensor) -> Tensor:
    """rect((u − θ)/ε)."""
    return ((u - theta).abs() < BANDWIDTH / 2).double()


def active(u: Tensor, theta: Tensor, to_input: bool = False) -> Tensor:
    """⟦u > θ⟧ whose gradient to θ is −rect((u − θ)/ε)/ε."""
    lent = (kernel(u, theta) / BANDWIDTH).detach()
    return (u > theta).double() + lent * ((u - u.detach() if to_input else 0.0) - (theta - theta.detach()))


def reconstruction(w: Weights, f: Tensor) -> Tensor:
    return (problem()["x"] - f @ w["W_dec"] - w["b_dec"]).square().sum(1).mean()


def jump_relu_is(make: MakeSAE, right: Penalty, wrong: Penalty, theirs: Weights, f_to_input: bool = False) -> None:
    """Ours has the definition's loss and gradients, theirs those of `wrong`, and they are not the same."""
    w = leaves("W_enc", "W_dec", "b_enc", "b_dec", "threshold", free=True)
    h, f = jumps(w)
    loss = reconstruction(w, f) + SPARSITY * right(w, h, f)
    step, found = steps(ours(make, free=True, width=BANDWIDTH))
    assert_close(step.loss, loss)
    due = gradients(loss, w)
    for name in w:
        assert_close(found[name], due[name])
    h, f = jumps(w, f_to_input)
    loss = reconstruction(w, f) + SPARSITY * wrong(w, h, f)
    assert_close(loss, theirs["loss"], **ROUNDING)
    had = gradients(loss, w)
    same_gradients(had, theirs)
    assert any(differ(due[name], had[name]) for name in w)


def test_the_target_of_l0_is_that_of_the_batch() -> None:
    """(mean L0 / L0* − 1)² for us; SAELens takes the mean over rows of 2/L0* (L0 − L0*)², which punishes rows for differing."""
    jump_relu_is(
        lambda d: JumpReLU(d, "target", K, SPARSITY),
        lambda w, h, f: (active(h, w["threshold"]).sum(1).mean() / K - 1).square(),
        lambda w, h, f: (2 / K * (active(h, w["threshold"]).sum(1) - K).square()).mean(),
        golden("sae_lens", "jumprelu, quadratic"),
    )


def test_l0_is_counted_on_what_stands_before_the_jump() -> None:
    """Step(h, θ) for us; dictionary_learning's Step(f, θ) counts the same, but its gradient misses every h just below θ, and finds all latents
    that are off and whose θ is below ε/2."""
    jump_relu_is(
        lambda d: JumpReLU(d, "target", K, SPARSITY),
        lambda w, h, f: (active(h, w["threshold"]).sum(1).mean() / K - 1).square(),
        lambda w, h, f: (active(f.detach(), w["threshold"]).sum(1).mean() / K - 1).square(),
        golden("dictionary_learning", "jumprelu"),
    )


def test_gradients_to_the_input_are_those_of_the_count_alone() -> None:
    """`gradient_to_input` is of the steps of L0 alone for us; SAELens lends h the gradient of the jump in f as well."""
    jump_relu_is(
        lambda d: JumpReLU(d, "l0", None, SPARSITY, gradient_to_input=True),
        lambda w, h, f: active(h, w["threshold"], to_input=True).sum(1).mean(),
        lambda w, h, f: active(h, w["threshold"], to_input=True).sum(1).mean(),
        golden("sae_lens", "jumprelu, l0, to input"),
        f_to_input=True,
    )


# p_anneal


def test_the_annealed_penalty_is_a_sum_of_powers() -> None:
    """mean Σ f^p for us; dictionary_learning's default is mean (Σ f^p)^(1/p), whose gradient on a latent grows with every other active one."""
    theirs, p = golden("dictionary_learning", "p_anneal, Lp"), 0.5

    def terms(w: Weights, smoothing: float) -> tuple[Tensor, Tensor]:
        x = problem()["x"]
        f = ((x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
        powers = torch.where(f > 0, (torch.where(f > 0, f, 1.0) + smoothing) ** p - smoothing**p, 0.0).sum(1)
        return (x - f @ w["W_dec"] - w["b_dec"]).square().sum(1).mean(), powers

    w = leaves(*NAMES)
    e, powers = terms(w, 0.0)
    assert_close((powers ** (1 / p)).mean(), theirs["term.lp_loss"], **ROUNDING)
    same_gradients(gradients(e + SPARSITY * (powers ** (1 / p)).mean(), w), theirs)
    e, powers = terms(w, 1e-6)
    step, found = steps(ours(lambda d: PAnneal(d, SPARSITY), p=p))
    assert_close(step.losses["sparsity"].value, powers.mean())
    right = gradients(e + SPARSITY * powers.mean(), w)
    for name in NAMES:
        assert_close(found[name], right[name])


# Resampling


def test_a_resampled_encoder_row_has_a_fifth_of_the_mean_length() -> None:
    """0.2 · mean norm of living encoder rows along u = (x − b_dec)/‖x − b_dec‖ for us; dictionary_learning writes 0.2 · norm · x itself, as long
    as the row happens to be, and points at x and not at x − b_dec."""
    given, theirs = problem(), golden("dictionary_learning", "resampled")
    dead = given["dead"].bool()
    length = 0.2 * given["W_enc"][~dead].norm(dim=1).mean()
    sae = ours(lambda d: TopK(d, K), dead=True)
    chosen = torch.stack([(F.normalize(given["x"], dim=1) @ row).argmax() for row in theirs["W_dec"]])  # the rows that it took
    x = given["x"][chosen]
    sae.dictionary.revive_(dead.nonzero().flatten(), x - given["b_dec"], x - given["b_dec"])
    found = sae.dictionary.W_enc[dead]
    assert_close(found.norm(dim=1), length.expand(len(found)))
    assert_close(sae.dictionary.W_dec[dead], F.normalize(x - given["b_dec"], dim=1))
    assert_close(theirs["W_enc"], length * x, **ROUNDING)
    assert differ(theirs["W_enc"].norm(dim=1), length.expand(len(found)))
