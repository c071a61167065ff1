"""The penalty against its equation, when p changes, and that λ keeps the penalty as large as it was."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.p_anneal import PAnneal
from tests.models.build import BATCH, gradients, rows
from tests.models.cases.p_anneal import p_anneal


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("p", [1.0, 0.6, 0.2])
def test_it_has_the_gradient_that_autograd_gives_its_equation(p: float, sparse: bool) -> None:
    x, sae = rows(), p_anneal(sparse, p)
    got = gradients(sae, x)
    own = {name: value.detach().clone().requires_grad_() for name, value in sae.named_parameters()}
    W, b, c, V = (own[f"dictionary.{name}"] for name in ("W_enc", "b_enc", "b_dec", "W_dec"))
    f = ((x - c) @ W.T + b).relu()
    penalty = sum(((f[f > 0] + 1e-6) ** p - 1e-6**p), torch.zeros(())) / BATCH
    loss = (x - f @ V - c).square().sum(1).mean() + 0.125 * penalty
    loss.backward()
    assert_close(sae.step(x, x).loss, loss, check_dtype=False)
    assert_close(got, {name: value.grad for name, value in own.items()}, rtol=1e-9, atol=1e-11)


def make(**settings) -> PAnneal:
    return PAnneal(partial(Dictionary, Shape((4,), (4,)), d_sae=8), **{"sparsity": 0.1, **settings})


def sums(now: float, following: float) -> dict[str, torch.Tensor]:
    return {"penalties": torch.tensor([now, following]), "rows": torch.tensor(2), "fires": torch.zeros(8, dtype=torch.int64)}


@pytest.mark.parametrize(("steps", "start", "changes"), [(100, 0.2, range(20, 100, 8)), (4, 0.25, [1, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
                                                         (50, 0.0, range(0, 50, 5))])  # fmt: skip
def test_p_falls_in_ten_equal_steps(steps: int, start: float, changes) -> None:
    sae = make(anneal_start=start)
    sae.begin_(steps)
    assert sae.changes.tolist() == list(changes)
    for step in range(1, steps + 1):
        following = float(sae.following)
        before = float(sae.p)
        sae.after_step_(sums(2.0, 1.0))
        done = sum(change <= step for change in changes)
        assert_close(sae.p, torch.tensor(1 - 0.08 * done))
        if float(sae.p) != before and step > 1:
            assert float(sae.p) == pytest.approx(following), "what was measured as the next p is the next p"
    assert_close(sae.p, torch.tensor(0.2))


def test_lambda_makes_up_for_the_change_over_the_last_ten_batches() -> None:
    """Changes at 20, 28, …: ten batches before 20 have Σ = 10·4 and 10·8 of 2 rows each: λ ← 0.1 · 4/8; then eight with 6 and 3: · 2."""
    sae = make(anneal_start=0.2)
    sae.begin_(100)
    for _ in range(10):
        sae.after_step_(sums(1000.0, 1.0))
    for _ in range(9):
        sae.after_step_(sums(4.0, 8.0))
    assert_close(sae.sparsity, torch.tensor(0.1))
    sae.after_step_(sums(4.0, 8.0))
    assert_close(sae.sparsity, torch.tensor(0.05))
    assert int(sae.filled) == 0  # what was measured is of the p before
    for _ in range(8):
        sae.after_step_(sums(6.0, 3.0))
    assert_close(sae.sparsity, torch.tensor(0.1))


def test_the_penalty_does_not_jump() -> None:
    torch.manual_seed(0)
    sae, x = make(anneal_start=0.5), torch.randn(64, 4)
    sae.begin_(20)
    terms = []
    for _ in range(14):
        step = sae.step(x, x)
        terms.append(float(step.losses["sparsity"].value.detach() * step.losses["sparsity"].weight))
        sae.after_step_({**step.sums, "rows": torch.tensor(64), "fires": step.latents.fires()})
    assert float(sae.p) < 0.7
    assert float(sae.sparsity) != pytest.approx(0.1)
    assert terms == pytest.approx([terms[0]] * 14, rel=1e-4)


def test_everything_that_moves_is_saved() -> None:
    sae = make()
    assert {"sparsity", "p", "following", "changes", "level", "recent", "filled", "steps_done"} <= set(sae.state_dict())


def test_a_run_made_longer_never_goes_back() -> None:
    sae = make(anneal_start=0.0)
    sae.begin_(20)
    for _ in range(10):
        sae.after_step_(sums(2.0, 1.0))
    p = float(sae.p)
    sae.begin_(200)
    sae.after_step_(sums(2.0, 1.0))
    assert float(sae.p) == p
    for _ in range(190):
        sae.after_step_(sums(2.0, 1.0))
    assert_close(sae.p, torch.tensor(0.2))


def test_it_has_no_penalty_without_an_active_latent() -> None:
    sae = make()
    with torch.no_grad():
        sae.dictionary.b_enc.fill_(-100)
    x = torch.randn(8, 4)
    step = sae.step(x, x)
    assert step.losses["sparsity"].value == 0
    sae.begin_(2)
    for _ in range(3):
        sae.after_step_({**step.sums, "rows": torch.tensor(8)})
    assert_close(sae.sparsity, torch.tensor(0.1))  # nothing to measure by


@pytest.mark.parametrize("wrong", [{"sparsity": -1.0}, {"anneal_start": 1.0}, {"anneal_start": -0.1}, {"last_p": 0.0}, {"last_p": 1.1}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"model.*{next(iter(wrong))}"):
        make(**wrong)
