import lightning as L
import pytest

from sae_lightning.callbacks.final_validation import FinalValidation


@pytest.mark.parametrize(("interval", "wanted"), [(4, [4, 8, 10]), (5, [5, 10]), (1000, [10])])
def test_validates_once_after_the_last_step_whatever_the_interval(small_run, interval, wanted):
    validated = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            validated.append(trainer.global_step)

    trainer, _ = small_run([Watch(), FinalValidation()], steps=10, val_check_interval=interval, enable_checkpointing=False)
    assert validated == wanted
    assert "val/l0" in trainer.callback_metrics
    assert trainer.global_step == 10
