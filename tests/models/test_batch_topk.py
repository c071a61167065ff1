"""Selection over a batch, the threshold that stands for it, and what cannot be."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.kernels import ops
from sae_lightning.models import batch_selection
from sae_lightning.models.batch_selection import per_latent, take_over_, threshold_for
from sae_lightning.models.batch_topk import BatchTopK
from sae_lightning.models.dictionary import Dictionary
from tests.models.build import BATCH, gradients, rows
from tests.models.cases.batch_topk import CASES
from tests.models.test_golden import X, by_hand


def on_noise(k: float, d: int = 16, d_sae: int = 128) -> BatchTopK:
    torch.manual_seed(0)
    return BatchTopK(partial(Dictionary, Shape((d,), (d,)), d_sae=d_sae), k)


class TwoHooks(Dictionary):
    """Decoder rows of any length; a latent counts by what it adds."""

    def selection_weight(self) -> torch.Tensor:
        return self.norms().detach()


@pytest.mark.parametrize("sparse", [True, False])
def test_by_hand(sparse: bool) -> None:
    """h = (3, 0.5), (0, 1.5): see test_golden.py."""
    sae = by_hand(lambda d: BatchTopK(d, 1.5), sparse=sparse)
    step = sae.step(X, X)
    # ⌊1.5 · 2⌋ = 3 entries: all that are positive
    assert_close(step.latents.dense(), torch.tensor([[3.0, 0.5], [0.0, 1.5]]))
    # x̂ = (3.3, 0.4), (0.9, 1.2):  (0.09 + 0.36 + 0.81 + 0.64) / 2
    assert_close(step.loss, torch.tensor(0.95))
    sae.after_step_(step.sums)  # the first update assigns
    assert_close(sae.tau, torch.tensor(0.5))
    sae.k.fill_(1.0)
    step = sae.step(X, X)
    assert_close(step.latents.dense(), torch.tensor([[3.0, 0.0], [0.0, 1.5]]))
    sae.after_step_(step.sums)  # m = 1 − 1/2:  (0.5 + 1.5) / 2
    assert_close(sae.tau, torch.tensor(1.0))
    sae.k.fill_(0.5)
    step = sae.step(X, X)
    assert_close(step.latents.dense(), torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    sae.after_step_(step.sums)  # m = 2/3:  1 · 2/3 + 3 · 1/3
    assert_close(sae.tau, torch.tensor(5 / 3))
    sae.updates.fill_(5000)
    sae.after_step_(step.sums)  # m = 0.999
    assert_close(sae.tau, torch.tensor(5 / 3 * 0.999 + 3 * 0.001))
    found = sae.eval().step(X, X)  # τ = 1.668
    assert_close(found.latents.dense(), torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
    assert found.sums == {}


def test_micro_batches_count_alike_and_nothing_chosen_moves_nothing() -> None:
    sae = by_hand(lambda d: BatchTopK(d, 1))
    sae.after_step_({"smallest": torch.tensor(1.0) + 2.0, "selections": torch.tensor(2.0)})
    assert_close(sae.tau, torch.tensor(1.5))
    step = sae.step(-X, -X)  # h = (−3, −1.5), (0, −2.5)
    assert step.latents.l0_per_row().sum() == 0
    sae.after_step_(step.sums)
    assert_close(sae.tau, torch.tensor(1.5))
    assert sae.updates == 1


@pytest.mark.parametrize("k", [0.0625, 0.3, 2.0, 3.3, 24.0])
def test_as_many_as_asked_for_are_chosen(k: float) -> None:
    sae = CASES["batch_topk"](True)
    assert isinstance(sae, BatchTopK)
    sae.k.fill_(k)
    h = sae.dictionary.encode(rows()).h
    chosen = sae.step(rows(), rows()).latents.dense()
    n = min(int(k * BATCH + 1e-6), int((h > 0).sum()))
    assert (chosen > 0).sum() == n
    assert_close(chosen[chosen > 0].min(), h.flatten().sort(descending=True).values[n - 1])


@pytest.mark.parametrize("sparse", [True, False])
def test_it_has_the_gradient_that_autograd_gives_its_equations(sparse: bool) -> None:
    x, sae = rows(), CASES["batch_topk, auxk"](sparse)
    got = gradients(sae, x)
    p = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V = (p[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    f = ((x - c) @ W.T + b).relu()
    n = int(3.3 * BATCH)  # 52
    e = x - (f * (f >= f.flatten().topk(n).values[-1])) @ V - c
    residual, dead = e.detach(), f * sae.dictionary.dead
    e_hat = (dead * (dead >= dead.topk(2, dim=1).values[:, 1:])) @ V
    auxk = (e_hat - residual).square().sum() / (residual - residual.mean(0)).square().sum()
    loss = e.square().sum(1).mean() + 0.5 * auxk
    loss.backward()
    assert_close(sae.step(x, x).loss, loss)
    assert_close(got, {name: value.grad for name, value in p.items()}, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [2.0, 4.0, 20.0])
def test_the_threshold_of_an_export_gives_k_on_new_rows(k: float) -> None:
    sae, g = on_noise(k), torch.Generator().manual_seed(0)
    found, fresh = torch.randn(sae.export_rows(), 16, generator=g), torch.randn(50_000, 16, generator=g)
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    l0 = sae.to_export(found).encode(fresh).l0_per_row().double().mean()
    assert abs(float(l0) / k - 1) < 0.02
    assert abs(int(sae.to_export(found).encode(found).l0_per_row().sum()) - k * len(found)) <= 2  # one that rounding moved
    assert_close(sae.state_dict(), before, rtol=0, atol=0)
    assert_close(sae.to_export(found[:0]).threshold, sae.to_inference().threshold)  # no row, no other threshold


def test_blocks_of_rows_give_the_threshold_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = on_noise(3.0), torch.randn(1000, 16)
    h = sae.dictionary.encode(x).h.flatten().sort(descending=True).values
    wanted = (h[2999] + h[3000]) / 2
    for block in (1, 1 << 12, 1 << 22):
        monkeypatch.setattr(batch_selection, "BLOCK", block)
        assert_close(threshold_for(sae.dictionary, x, 3.0), wanted, rtol=1e-6, atol=0)
    assert threshold_for(sae.dictionary, x, 128.0) == 0


def test_before_the_first_step_a_row_has_k_latents() -> None:
    sae, x = on_noise(4.0), torch.randn(8192, 16)
    sae.calibrate_(x)
    l0 = sae.eval().step(x, x).latents.l0_per_row().double().mean()
    assert abs(float(l0) / 4 - 1) < 0.01


def test_latents_of_unequal_length_count_by_what_they_add() -> None:
    torch.manual_seed(0)
    sae = BatchTopK(partial(TwoHooks, Shape((16,), (16,)), d_sae=128), 4.0)
    with torch.no_grad():
        sae.dictionary.W_dec.mul_(torch.rand(128, 1) + 0.5)
    x, n = torch.randn(512, 16), sae.dictionary.norms()
    u = sae.dictionary.encode(x).h.relu() * n
    least = u.flatten().topk(4 * 512).values[-1]
    step = sae.step(x, x)
    assert_close(step.latents.dense() > 0, u >= least)
    sae.after_step_(step.sums)
    assert_close(sae.tau, least)
    exported = sae.to_export(x)
    assert exported.threshold is not None
    assert_close(exported.encode(x).dense() > 0, u >= least)
    assert_close(exported.threshold * n, exported.threshold[0] * n[0].expand(128))


def test_thresholds_of_another_sae_are_taken_over_where_they_mean_one() -> None:
    sae, plain = BatchTopK(partial(TwoHooks, Shape((16,), (16,)), d_sae=128), 4.0), on_noise(4.0)
    with torch.no_grad():
        sae.dictionary.W_dec.mul_(torch.rand(128, 1) + 0.5)
    one = torch.full((128,), 0.7)
    for dictionary in (sae.dictionary, plain.dictionary):
        tau = torch.tensor(9.0)
        take_over_(tau, dictionary, per_latent(dictionary, torch.tensor(0.7)))
        assert_close(tau, torch.tensor(0.7))
    tau = torch.tensor(9.0)
    for no_one in (None, torch.zeros(128), -one, one * torch.linspace(1, 1.1, 128)):
        take_over_(tau, plain.dictionary, no_one)
    take_over_(tau, sae.dictionary, one)  # one threshold of f is not one of what a latent adds
    assert tau == 9


def test_selection_knows_its_shapes_before_it_runs() -> None:
    h = torch.randn(40, 30)
    torch.library.opcheck(ops.top_k_of_batch, (h, torch.tensor(50), None), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("k", [0.0, -1.0, 128.5])
def test_what_cannot_be_is_refused(k: float) -> None:
    with pytest.raises(InputError, match=r"model\.k"):
        on_noise(k)
