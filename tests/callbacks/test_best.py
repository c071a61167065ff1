import json
import math

import lightning as L
import pytest
import torch

from sae_lightning.callbacks.best import Best
from sae_lightning.callbacks.export import Export
from sae_lightning.callbacks.last import Last
from sae_lightning.callbacks.miracle_distance import MiracleDistance
from sae_lightning.errors import InputError
from sae_lightning.load import load_sae


class Says(L.Callback):
    """Logs val/score: the next of `scores` at each validation."""

    def __init__(self, *scores: float):
        self.scores = list(scores)

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/score", self.scores.pop(0))


def best_step(folder) -> int:
    step = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
    about = json.loads((folder / "sae_best" / "sae.json").read_text())["about"]
    assert about["step"] == step
    return step


@pytest.mark.parametrize(
    ("mode", "scores", "wanted"),
    [
        ("min", (3.0, 1.0, 2.0, 1.0), 10),
        ("max", (1.0, 3.0, 2.0, 4.0), 20),
        ("min", (math.nan, 2.0, math.nan, 3.0), 10),
        ("min", (0.5, 1, 2, 3), 5),
    ],
)
def test_keeps_the_best_validation(small_run, tmp_path, mode, scores, wanted):
    small_run([Says(*scores), Best("val/score", mode)], steps=20, val_check_interval=5)
    assert best_step(tmp_path) == wanted


def test_a_resumed_run_remembers_the_best(small_run, tmp_path):
    for order in (lambda best, last: [best, last], lambda best, last: [last, best]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        small_run([Says(1.0), *order(Best("val/score"), Last(5))], steps=5, val_check_interval=5, folder=folder)
        callbacks = [Says(3.0, 2.0), *order(Best("val/score"), Last(5))]
        small_run(callbacks, steps=15, val_check_interval=5, folder=folder, resume=folder / "checkpoints" / "last.ckpt")
        assert best_step(folder) == 5


def test_by_default_it_is_the_miracle_distance(small_run, tmp_path):
    trainer, _ = small_run([Best(), MiracleDistance()], steps=10)
    about = json.loads((tmp_path / "sae_best" / "sae.json").read_text())["about"]
    assert about["val/miracle_distance"] == pytest.approx(float(trainer.callback_metrics["val/miracle_distance"]))


def test_an_unknown_number_is_one_line(small_run):
    with pytest.raises(
        InputError, match=r"callbacks\.best\.monitor is 'val/fvu_typo', which validation does not log: choose one of .*val/mse"
    ):
        small_run([Best("val/fvu_typo")], steps=10)


def test_what_is_exported_at_the_end_is_the_trained_sae(small_run, tmp_path):
    _, module = small_run([Export()], steps=10, enable_checkpointing=False)
    sae, x = load_sae(str(tmp_path / "sae")), module.rows.sample(64, 1).x
    torch.testing.assert_close(sae(x), module.inference()(x), rtol=0, atol=0)
    assert sae.about == {"architecture": "topk", "step": 10, "rows": 320, "views": "one", "widths": {"x": [16], "y": [16]}}
