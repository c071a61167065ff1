"""What the callback that saves does with signals, in this process: they arrive at a known step."""

import os
import signal
import time

import lightning as L
import pytest
import torch

from sae_lightning.callbacks.export import Export
from sae_lightning.callbacks.final_validation import FinalValidation
from sae_lightning.callbacks.last import Last
from sae_lightning.callbacks.miracle_distance import MiracleDistance
from sae_lightning.errors import Interrupted
from sae_lightning.loggers.csv import CSV
from sae_lightning.signals import SIGNALS


class Send(L.Callback):
    """Signals to this process, once, at a hook of an optimizer step."""

    def __init__(self, step: int, *numbers: signal.Signals, hook: str = "on_train_batch_start"):
        self.step, self.numbers, self.passed = step, numbers, 0
        setattr(self, hook, self.send)

    def send(self, trainer: L.Trainer, *args) -> None:
        if trainer.global_step == self.step:
            numbers, self.numbers = self.numbers, ()
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(0)  # Python runs handlers between two instructions
                self.passed += 1


def step_of(folder, name: str = "last") -> int:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(small_run, tmp_path, capfd, caplog, number, code):
    with pytest.raises(Interrupted) as interrupted:
        small_run([Send(6, number), Export(), Last(4)], loggers=[CSV(str(tmp_path / "metrics.csv"))])
    assert interrupted.value.code == code
    assert (step_of(tmp_path), step_of(tmp_path, "previous")) == (7, 4)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[-1].startswith("5,")  # flushed
    assert not (tmp_path / "sae").exists()
    assert f"{number.name}: stops after this step" in capfd.readouterr().err
    assert f"stopped by {number.name} after step 7 of 20" in caplog.text


def test_under_a_wandb_agent_it_is_no_failure(small_run, monkeypatch):
    monkeypatch.setenv("WANDB_SWEEP_ID", "x")
    for number, code in ((signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 130)):
        with pytest.raises(Interrupted) as interrupted:
            small_run([Send(3, number), Last(100)])
        assert interrupted.value.code == code


def test_a_second_signal_leaves_at_once_and_a_third_kills(small_run, tmp_path):
    send = Send(6, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    with pytest.raises(Interrupted) as interrupted:
        small_run([send, Last(4)])
    assert send.passed == 1
    assert interrupted.value.code == 130
    assert (step_of(tmp_path), (tmp_path / "checkpoints" / "previous.ckpt").exists()) == (4, False)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# (when it comes, which step is saved); a step has three micro-batches
MOMENTS = {
    "in a step": (Send(6, signal.SIGTERM), 7),
    "in a step that is validated": (Send(9, signal.SIGTERM), 10),
    "in a validation": (Send(10, signal.SIGTERM, hook="on_validation_batch_start"), 10),
    "at the end of a validation": (Send(10, signal.SIGTERM, hook="on_validation_epoch_end"), 10),
    "in the last step": (Send(24, signal.SIGTERM), 25),
    "in the last validation": (Send(25, signal.SIGTERM, hook="on_validation_batch_start"), 25),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_going_on_after_a_signal_is_never_having_stopped(small_run, tmp_path, moment):
    send, saved = MOMENTS[moment]

    def run(name: str, *more: L.Callback, resume=None):
        folder = tmp_path / name
        callbacks = [*more, MiracleDistance(), FinalValidation(), Export(), Last(4)]
        loggers, settings = [CSV(str(folder / "metrics.csv"))], {"accumulate": 3, "val_check_interval": 30}
        return small_run(callbacks, steps=25, folder=folder, resume=resume, loggers=loggers, **settings)

    trainer, _ = run("whole")
    with pytest.raises(Interrupted):
        run("stopped", send)
    assert step_of(tmp_path / "stopped") == saved
    again, _ = run("stopped", resume=tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    for name in ("metrics.csv", "sae/sae.safetensors", "sae/sae.json"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    name = "val/miracle_distance"  # what a sweep is told, also where nothing was left to do
    torch.testing.assert_close(again.callback_metrics[name], trainer.callback_metrics[name], rtol=0, atol=0)


def test_lightning_takes_no_part_in_it(small_run):
    before, found = [signal.getsignal(number) for number in SIGNALS], []

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            found.append([signal.getsignal(number) for number in SIGNALS])

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found.append([signal.getsignal(number) for number in SIGNALS])

    last = Last(4)
    trainer, _ = small_run([Look(), last], steps=2)
    assert found == [before, *[[last.stop._receive] * len(SIGNALS)] * 2]
    assert not trainer.received_sigterm
    # A later Lightning may call these otherwise: what replaces them would then be without effect.
    assert callable(type(trainer._signal_connector).register_signal_handlers)
    assert callable(type(trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor)
    assert "_broadcast_sigterm_tensor" in vars(trainer.fit_loop.epoch_loop)
