"""Numbers worked out again, and what is said: when, how often, and that it names what to change."""

import logging
import re
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger

from sae_lightning.callbacks.health import Health
from sae_lightning.data.batch import Shape
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian
from sae_lightning.module import SAEModule
from tests.run.test_longer import curve
from tests.run.test_resume_exact import assert_same_runs, killed_and_resumed, train
from tests.runs import WITH_CALLBACKS

MAKE = partial(Dictionary, Shape((16,), (16,)), d_sae=48)


class Kept(Logger):
    def __init__(self):
        super().__init__()
        self.values: dict[tuple[int, str], float] = {}

    @property
    def name(self) -> str:
        return "kept"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *_, **__) -> None: ...

    def log_metrics(self, metrics, step=None) -> None:
        self.values |= {(step, name): value for name, value in metrics.items()}


class Again(L.Callback):
    """Occupancy by a loop over latents, of the rows of one optimizer step; and what else is counted."""

    def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx) -> None:
        if pl_module.last is not None:
            sae, x = pl_module.sae, pl_module.scaled(pl_module.last[0]).x
            assert isinstance(sae, Lagrangian)
            h = (x - sae.dictionary.b_dec) @ sae.dictionary.W_enc.T + sae.dictionary.b_enc
            near = [int(((h[:, j] - sae.threshold[j]).abs() < sae.width / 2).sum()) for j in range(48)]
            self.found = sum(near) / 48, int((sae.threshold == 0).sum()) / 48


class Force(L.Callback):
    """Holds something at a value that is wrong."""

    def __init__(self, **wrong: float):
        self.wrong = wrong

    def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx) -> None:
        for name, value in self.wrong.items():
            pl_module.sae.get_parameter(name).data.fill_(value) if name == "threshold" else pl_module.sae.get_buffer(name).fill_(value)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sae_lightning.callbacks.health"]


def test_numbers_of_a_step(small_run) -> None:
    logger, again = Kept(), Again()
    sae = Lagrangian(MAKE, 4.0)
    small_run([Health(), again], steps=10, sae=sae, loggers=[logger], enable_checkpointing=False)
    occupancy, at_0 = again.found
    assert occupancy > 0
    assert logger.values[10, "lagrangian/kernel_occupancy"] == pytest.approx(occupancy, rel=1e-5)
    assert logger.values[10, "lagrangian/threshold_at_0"] == pytest.approx(at_0)
    assert logger.values[10, "lagrangian/dual_at_bound"] == 0
    assert {step for step, name in logger.values if name == "lagrangian/kernel_occupancy"} == {5, 10}
    training = (logger.values[5, "train/l0"] + logger.values[10, "train/l0"]) / 2  # the steps that were logged
    assert logger.values[10, "lagrangian/l0_gap"] == pytest.approx(training - float(logger.values[10, "val/l0"]), abs=1e-5)


def test_micro_batches_count(small_run) -> None:
    """Twice the rows, twice the occupancy (of one micro-batch, taken for both)."""
    logger, again = Kept(), Again()
    small_run([Health(), again], steps=10, accumulate=2, sae=Lagrangian(MAKE, 4.0), loggers=[logger], enable_checkpointing=False)
    assert logger.values[10, "lagrangian/kernel_occupancy"] == pytest.approx(2 * again.found[0], rel=1e-5)


def test_nothing_is_said_of_what_has_no_thresholds(small_run, caplog) -> None:
    logger = Kept()
    small_run([Health()], steps=10, loggers=[logger], enable_checkpointing=False)  # topk
    assert not [name for _, name in logger.values if name.startswith("topk/")]
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 1e-6}, "kernel occupancy is .* raise data.batch_size or model.bandwidth$"),
        ({"threshold": 0.0}, "100% of the thresholds are at 0.* raise dictionary.expansion_factor$"),
        ({"dual": 1.0, "threshold": 0.01}, "the dual is at its bound of 1 and L0 is .* raise model.dual_max or model.rho$"),
    ],
)
def test_what_is_wrong_is_said_once(small_run, caplog, wrong, words) -> None:
    with caplog.at_level(logging.WARNING):
        small_run([Force(**wrong), Health()], steps=30, sae=Lagrangian(MAKE, 4.0), log_every_n_steps=2, enable_checkpointing=False)
    found = [line for line in said(caplog) if re.search(words, line)]
    assert len(found) == 1
    assert "\n" not in found[0]


def test_a_moment_is_not_a_complaint(small_run, caplog) -> None:
    """Wrong on two logged steps, right on the third, over and over."""

    class Now(L.Callback):
        def on_train_batch_end(self, trainer, pl_module: SAEModule, outputs, batch, batch_idx) -> None:
            pl_module.sae.get_buffer("width").fill_(1.0 if trainer.global_step % 3 == 0 else 1e-6)

    small_run([Now(), Health()], steps=12, sae=Lagrangian(MAKE, 4.0), log_every_n_steps=1, enable_checkpointing=False)
    assert not [line for line in said(caplog) if "occupancy" in line]


@pytest.mark.parametrize(("inequality", "complains"), [(False, True), (True, False)])
def test_a_target_that_was_missed_is_said_at_the_end(small_run, caplog, inequality, complains) -> None:
    """Thresholds far too high: no latent fires, which is 100 % below the target, and allowed where the target is a bound."""
    sae = Lagrangian(MAKE, 4.0, inequality=inequality)
    small_run([Force(threshold=100.0), Health()], steps=20, sae=sae, enable_checkpointing=False)
    found = [line for line in said(caplog) if "at the end" in line]
    wanted = "held-out L0 is 0 at the end, 100% below its target of 4: raise trainer.max_steps or model.rho or model.dual_rate"
    assert found == ([wanted] if complains else [])


def test_it_is_among_the_default_callbacks_and_resumes_exactly(tmp_path: Path) -> None:
    words = f"model=lagrangian model.target_l0=4 {WITH_CALLBACKS}"
    train(words, tmp_path / "whole")
    killed_and_resumed(words, tmp_path / "run", 20)
    assert_same_runs(tmp_path / "run", tmp_path / "whole")
    assert list(curve(tmp_path / "run", "lagrangian/kernel_occupancy")) == [10, 20, 30, 40]
    assert list(curve(tmp_path / "run", "lagrangian/l0_gap")) == [20, 40]


def test_the_dual_freezes_at_its_bound_and_leaves_it_at_once() -> None:
    """No wind-up: after any time at the bound, one step of an L0 below the target moves it inward."""
    sae = Lagrangian(MAKE, 4.0, momentum=0.0, dual_rate=0.5)
    many, few = ({"fires": torch.full((48,), n), "rows": torch.tensor(12)} for n in (2, 0))  # L0 8, and 0
    for _ in range(10):
        sae.after_step_(many)
    assert sae.dual == 1
    sae.after_step_(few)
    assert sae.dual == 0.5  # 1 + 0.5 · (0 − 4)/4
    for _ in range(10):
        sae.after_step_(few)
    assert sae.dual == -1
