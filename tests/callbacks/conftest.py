"""A small real run: known directions, a topk SAE, a second at most."""

import signal
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torchmetrics import MetricCollection

from sae_lightning.checkpoint_io import AtomicCheckpointIO
from sae_lightning.run.quiet import NOISE
from sae_lightning.signals import SIGNALS

LIGHTNING_SAYS = (*NOISE, "It is recommended to use `self.log")
"""The last: metrics are those of all ranks before they are logged, which Lightning cannot know."""


@pytest.fixture(autouse=True)
def handlers():
    """Each test begins with Python's own handlers, whatever others left; one that leaves other ones behind has failed."""
    own = {number: signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL for number in SIGNALS}
    found = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in found.items()}
    assert after == own


@pytest.fixture
def small_run(tmp_path):
    """Returns train(callbacks, steps, …) → (trainer, module): the run's folder is tmp_path unless said otherwise."""
    from sae_lightning.data.synthetic import SyntheticDataModule
    from sae_lightning.metrics.dead import Dead
    from sae_lightning.metrics.reconstruction_error import ReconstructionError
    from sae_lightning.metrics.sparsity import Sparsity
    from sae_lightning.models.dictionary import Dictionary
    from sae_lightning.models.topk import TopK
    from sae_lightning.module import SAEModule
    from sae_lightning.run.build import Run

    def train(
        callbacks,
        steps=20,
        folder: Path = tmp_path,
        resume=None,
        loggers=(),
        sae=None,
        dead_after=None,
        accumulate=1,
        lr=1e-3,
        data=None,
        **settings,
    ):
        torch.manual_seed(0)
        data = data or SyntheticDataModule(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=128)
        sae = sae or TopK(partial(Dictionary, data.shape, d_sae=48, dead_after=dead_after), k=4)
        metrics = MetricCollection([ReconstructionError(), Sparsity(), Dead()])
        module = SAEModule(sae, partial(torch.optim.Adam, lr=lr), metrics)
        defaults: dict = {"devices": 1, "val_check_interval": 10, "check_val_every_n_epoch": None, "log_every_n_steps": 5}
        trainer = L.Trainer(
            max_steps=steps, callbacks=list(callbacks), logger=list(loggers), default_root_dir=folder, plugins=[AtomicCheckpointIO()],
            accelerator="cpu", accumulate_grad_batches=accumulate, num_sanity_val_steps=0, enable_model_summary=False,
            enable_progress_bar=settings.pop("enable_progress_bar", False), enable_checkpointing=settings.pop("enable_checkpointing", True),
            **defaults | settings,
        )  # fmt: skip
        with warnings.catch_warnings():
            for message in LIGHTNING_SAYS:
                warnings.filterwarnings("ignore", message)
            Run(trainer, module, data, folder, resume).fit()
        return trainer, module

    return train
