from pathlib import Path

import lightning as L
import pytest
import torch

from sae_lightning.callbacks.final_validation import FinalValidation
from sae_lightning.callbacks.last import Last
from sae_lightning.errors import InputError


class Diary(L.Callback):
    """What happened at which optimizer step, and which checkpoint was there by then."""

    def __init__(self, path: Path):
        self.path, self.events = path, []

    def note(self, what: str, trainer: L.Trainer) -> None:
        saved = torch.load(self.path, weights_only=True)["global_step"] if self.path.exists() else None
        self.events.append((what, trainer.global_step, saved))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.note("train", trainer)

    def on_validation_start(self, trainer, pl_module):
        self.note("validate", trainer)


def stop_at(step: int):
    class Killed(Exception): ...

    class Stop(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == step:
                raise Killed

    return Stop(), Killed


def test_saves_every_period_and_at_the_end_and_after_a_validation_of_that_step(small_run, tmp_path):
    diary = Diary(tmp_path / "checkpoints" / "last.ckpt")
    small_run([diary, Last(every_n_steps=4)], steps=10, val_check_interval=4)
    saved_by = {step: saved for what, step, saved in diary.events if what == "train"}
    assert [saved_by[step] for step in range(10)] == [None, None, None, None, 4, 4, 4, 4, 8, 8]
    assert [event for event in diary.events if event[0] == "validate"] == [("validate", 4, None), ("validate", 8, 4)]
    assert torch.load(diary.path, weights_only=True)["global_step"] == 10
    assert sorted(path.name for path in diary.path.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert torch.load(diary.path.with_name("previous.ckpt"), weights_only=True)["global_step"] == 8


@pytest.mark.parametrize(("killed_at", "goes_on_at"), [(7, 6), (5, 4), (12, 12), (14, 12)])
def test_a_resumed_run_does_what_was_left_to_do_once(small_run, tmp_path, killed_at, goes_on_at):
    """Period 2 and validation every 4: checkpoints on steps with (4, 12) and without (6) a validation."""
    whole = Diary(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    _, expected = small_run([whole, FinalValidation(), Last(2)], steps=18, folder=tmp_path / "whole", val_check_interval=4)

    stop, killed = stop_at(killed_at)
    first = Diary(tmp_path / "checkpoints" / "last.ckpt")
    period = 2 if goes_on_at == 6 else 4
    with pytest.raises(killed):
        small_run([first, stop, FinalValidation(), Last(period)], steps=18, val_check_interval=4)
    second = Diary(first.path)
    _, module = small_run([second, FinalValidation(), Last(period)], steps=18, val_check_interval=4, resume=first.path)

    def order(diary: Diary):
        return [(what, step) for what, step, _ in diary.events]

    assert [event for event in order(first) if event[0] == "validate"] == [("validate", step) for step in (4, 8, 12) if step <= killed_at]
    wanted = [event for event in order(whole) if event[1] > goes_on_at or event == ("train", goes_on_at)]
    assert order(second) == wanted
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_a_finished_run_can_be_made_longer(small_run, tmp_path):
    _, expected = small_run([FinalValidation(), Last(100)], steps=14, folder=tmp_path / "whole")
    small_run([FinalValidation(), Last(100)], steps=7)
    trainer, module = small_run([FinalValidation(), Last(100)], steps=14, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert trainer.global_step == 14
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_holds_what_other_callbacks_did_at_its_step_whatever_their_order(small_run, tmp_path):
    class Counts(L.pytorch.callbacks.Checkpoint):
        validations = 0

        def on_validation_end(self, trainer, pl_module):
            self.validations += 1

        def state_dict(self):
            return {"validations": self.validations}

    for name, callbacks in {"before": [Counts(), Last(4)], "after": [Last(4), Counts()]}.items():
        small_run(callbacks, steps=4, folder=tmp_path / name, val_check_interval=4)
        states = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
        assert {"validations": 1} in states.values()


def test_saves_between_optimizer_steps_only(small_run, tmp_path):
    steps = []

    class Watch(L.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            assert not pl_module.sums
            steps.append((trainer.global_step, checkpoint["SyntheticDataModule"]["batches_trained"]))

    stop, killed = stop_at(3)
    with pytest.raises(killed):
        small_run([Last(2), Watch(), stop], steps=6, accumulate=3, val_check_interval=1000)
    small_run([Last(2), Watch()], steps=6, accumulate=3, val_check_interval=1000, resume=tmp_path / "checkpoints" / "last.ckpt")
    assert steps == [(2, 6), (4, 12), (6, 18)]


def test_period_must_be_positive():
    with pytest.raises(InputError, match="every_n_steps is 0"):
        Last(0)
