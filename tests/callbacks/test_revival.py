"""What brings dead latents back, beside a control arm: as many directions as latents, a fixed window, a tenth of the latents made dead."""

import copy
from functools import partial

import lightning as L
import pytest
import torch

from sae_lightning.callbacks.resample import Resample
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.evaluation.recovery import Recovery
from sae_lightning.models.auxk import AuxK
from sae_lightning.models.base import Revival
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.ghost_grads import GhostGrads
from sae_lightning.models.topk import TopK
from sae_lightning.module import SAEModule

pytestmark = pytest.mark.usefixtures("unchecked")
LATENTS, BATCH = 100, 128
WINDOW = 20 * BATCH
KILLED = torch.arange(0, LATENTS, 10)


class Kill(L.Callback):
    """Before the first step: a trained SAE's state, a tenth of whose encoder rows shrank; h is still positive on 2 % of rows, and hardly ever chosen."""

    def __init__(self, state: dict[str, torch.Tensor]):
        self.state = state

    @torch.no_grad()
    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        d, x = pl_module.sae.dictionary, pl_module.scaled(trainer.datamodule.sample(4096, 1)).x
        pl_module.sae.load_state_dict(self.state)
        d.W_enc[KILLED] *= 0.05
        d.b_enc[KILLED] = 0.0
        d.b_enc[KILLED] = -d.encode(x).h[:, KILLED].quantile(0.98, dim=0)
        d.rows_since_fired[KILLED] = WINDOW
        assert (d.encode(x).h[:, KILLED] > 0).double().mean(0).min() > 0.01
        assert pl_module.sae.step(x, x).latents.fires()[KILLED].max() <= 1


def rows() -> SyntheticDataModule:
    return SyntheticDataModule(d=32, n_directions=LATENTS, l0=2.0, batch_size=BATCH, rows_held_out=4096)


def topk(revival: Revival | None = None) -> TopK:
    torch.manual_seed(1)
    return TopK(partial(Dictionary, rows().shape, d_sae=LATENTS, dead_after=WINDOW), k=3, revival=revival)


# Slow: 1500 steps of training, then 900 in each of four arms.
@pytest.mark.slow
def test_treatments_beside_a_control_arm(small_run) -> None:
    settings = {"lr": 2e-3, "enable_checkpointing": False, "val_check_interval": 300}
    trained = small_run([], 1500, sae=topk(), data=rows(), **settings)[1].sae
    state = copy.deepcopy(trained.state_dict())

    def arm(*callbacks: L.Callback, revival: Revival | None = None) -> tuple[int, float]:
        """How many of the killed latents are dead in the end, and the recall of directions."""
        data = rows()
        module = small_run([Kill(state), *callbacks], 900, sae=topk(revival), data=data, **settings)[1]
        return int(module.sae.dictionary.dead[KILLED].sum()), Recovery()(module.inference(), data)["recovery"]

    dead, recall = {}, {}
    dead["control"], recall["control"] = arm()
    dead["resample"], recall["resample"] = arm(Resample(every_n_rows=100 * BATCH, times=None))
    dead["auxk"], recall["auxk"] = arm(revival=AuxK())
    dead["ghost_grads"], recall["ghost_grads"] = arm(revival=GhostGrads())
    print(dead, recall)
    assert dead["control"] >= 0.9 * len(KILLED)
    for name in ("resample", "auxk"):
        assert dead[name] < dead["control"] / 5, dead
        assert recall[name] > recall["control"], recall
    assert dead["ghost_grads"] < dead["control"] / 2, dead
