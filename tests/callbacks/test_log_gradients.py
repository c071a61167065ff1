"""Gradients as logged, against those that stand in the parameters."""

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from sae_lightning.callbacks.log_gradients import LogGradients, norms, statistics
from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV
from tests.callbacks.curves import curves


class Spy(L.Callback):
    """Gradients before the projection and clipping of each step, and what was stepped on."""

    def __init__(self):
        self.before, self.stepped_on, self.after = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = dict(pl_module.sae.dictionary.named_parameters())
        gradients = {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}
        w = named["W_dec"].detach()
        g = gradients["W_dec"]
        gradients["W_dec"] = g - (g * w).sum(1, keepdim=True) * w / w.square().sum(1, keepdim=True)
        self.before.append(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        named = dict(pl_module.sae.dictionary.named_parameters())
        self.stepped_on.append({name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None})
        self.after.append({name: parameter.detach().clone() for name, parameter in named.items()})


@pytest.fixture
def run(small_run, tmp_path):
    """(curves, spy) of a run whose gradients are clipped."""
    spy, logger = Spy(), CSV(str(tmp_path / "metrics.csv"))
    small_run([spy, LogGradients(every_n_steps=3)], steps=6, loggers=[logger], gradient_clip_val=1e-3, enable_checkpointing=False)
    logger.save()
    return curves(tmp_path / "metrics.csv"), spy


def test_each_number_is_that_of_the_gradient_on_which_the_step_was_made(run) -> None:
    logged, spy = run
    assert {step for step, name in logged if name.startswith("gradients/")} == {3, 6}
    for step in (3, 6):
        before, stepped_on, after = spy.before[step - 1], spy.stepped_on[step - 1], spy.after[step - 1]
        assert set(before) == {"W_enc", "W_dec", "b_enc", "b_dec"}
        every = torch.cat([g.flatten() for g in before.values()]).double()
        expected = {}
        for prefix, g in [*((f"{name}_", g.double()) for name, g in before.items()), ("", every)]:
            expected |= {
                f"{prefix}norm": g.norm(),
                f"{prefix}mean": g.mean(),
                f"{prefix}std": g.std(correction=0),
                f"{prefix}max": g.abs().max(),
            }
        for name, value in expected.items():
            assert_close(logged[step, f"gradients/{name}"], float(value), rtol=1e-4, atol=1e-9)
        assert float(every.norm()) > 1e-3  # it was clipped
        for name, g in stepped_on.items():
            assert_close(logged[step, f"gradients/{name}_norm_clipped"], float(g.norm()), rtol=1e-5, atol=0)
            assert_close(logged[step, f"parameters/{name}_norm"], float(after[name].norm()), rtol=1e-5, atol=0)
        assert_close(logged[step, "gradients/norm_clipped"], 1e-3, rtol=1e-3, atol=0)


def test_the_numbers_of_two_by_hand() -> None:
    # Entries 3, −4 and 0, 0, 12: norms 5 and 12, together 13; means −0.5 and 4, together 11/5.
    # Squares 25/2 − 0.25 = 12.25 → 3.5; 144/3 − 16 = 32; together 169/5 − 4.84 = 28.96.
    found = statistics({"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([0.0, 0.0, 12.0])})
    wanted = {
        "a_norm": 5, "b_norm": 12, "norm": 13, "a_mean": -0.5, "b_mean": 4, "mean": 2.2, "a_std": 3.5, "b_std": 32**0.5,
        "std": 28.96**0.5, "a_max": 4, "b_max": 12, "max": 12,
    }  # fmt: skip
    assert_close(found, {f"gradients/{name}": float(value) for name, value in wanted.items()}, check_dtype=False, rtol=1e-6, atol=0)
    assert norms({"a": torch.tensor([3.0, -4.0]), "b": torch.tensor([12.0])}) == {"a_norm": 5, "b_norm": 12, "norm": 13}


def test_looking_changes_nothing(small_run, tmp_path) -> None:
    (_, plain), (_, watched) = (
        small_run(callbacks, steps=6, folder=tmp_path / name, gradient_clip_val=1e-3, enable_checkpointing=False)
        for name, callbacks in {"plain": [], "watched": [LogGradients(every_n_steps=1)]}.items()
    )
    for one, other in zip(plain.sae.parameters(), watched.sae.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"log_gradients\.every_n_steps is 0"):
        LogGradients(every_n_steps=0)
