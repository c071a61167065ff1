"""What a step of the Trainer costs beyond the bare step of the SAE: default callbacks, csv logger, module; paired in one process.

    python -m benchmarks.trainer_overhead

The bare step is what the Trainer's step must do in any case: the SAE's step, backward, projection, clipping, the optimizer, after_step_.
Steps of the two sides alternate in blocks, on the same batches, at two sizes; printed are medians per step, their difference and ratio.
"""

import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import torch

from sae_lightning.data.batch import Batch
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.module import SAEModule
from sae_lightning.run.build import build
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer

ROOT = Path(__file__).parents[1]
SIZES = {"tiny (d 16, F 64, batch 64)": (16, 64, 64, 600), "A (d 512, F 4096, batch 2048)": (512, 4096, 2048, 60)}
BLOCK = 10
WARM_UP = 2
"""Blocks that are not counted."""


class Paired(L.Callback):
    """After every block of the Trainer's steps, as many bare ones on a copy of the SAE; the time of each block's steps."""

    def __init__(self) -> None:
        self.trainer_ms: list[float] = []
        self.bare_ms: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        self.bare = _Bare(pl_module, trainer)
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: object, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step % BLOCK:
            return
        ended = time.perf_counter()
        self.trainer_ms.append(1e3 * (ended - self.began) / BLOCK)
        for _ in range(BLOCK):
            self.bare.step(batch)
        self.began = time.perf_counter()
        self.bare_ms.append(1e3 * (self.began - ended) / BLOCK)


class _Bare:
    def __init__(self, module: SAEModule, trainer: L.Trainer):
        self.sae, self.scaled = module.sae, module.scaled
        self.optimizer = module.make_optimizer([{"params": list(self.sae.parameters())}])
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the SAE is the Trainer's own: it must stay as it is
        self.clip = trainer.gradient_clip_val

    def step(self, batch: Batch) -> None:
        state = {name: buffer.clone() for name, buffer in self.sae.named_buffers() if buffer.ndim == 0}
        self.optimizer.zero_grad()
        step = self.sae.step(*self.scaled(batch))
        step.loss.backward()
        self.sae.dictionary.before_step_()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.clip)
        self.optimizer.step()
        sums = {"rows": torch.tensor(len(batch.x)), "fires": step.latents.fires()}
        self.sae.dictionary.after_step_(sums["fires"], sums["rows"])
        self.sae.after_step_(sums)
        for name, value in state.items():
            self.sae.get_buffer(name).copy_(value)


def measure(d: int, d_sae: int, batch: int, steps: int) -> tuple[float, float]:
    """Medians of a step in milliseconds: the Trainer's, the bare one's. Rows are made beforehand: making them is not what is measured."""
    with tempfile.TemporaryDirectory() as folder:
        words = (
            f"data.d={d} data.n_directions=64 data.l0=3 data.batch_size={batch} data.rows_held_out={batch} dictionary.d_sae={d_sae} "
            f"dictionary.expansion_factor=null model.k=8 trainer.max_steps={steps} trainer.val_check_interval={10 * steps} "
            f"callbacks.last.every_n_steps={10 * steps} paths.run={folder}"
        )
        run = build(validate(Composer(ROOT / "conf", "train"), words.split()))
        _made_beforehand(run.data)
        paired = Paired()
        run.trainer.callbacks.append(paired)  # type: ignore[attr-defined]
        run.trainer.fit(run.module, run.data)
    return statistics.median(paired.trainer_ms[WARM_UP:]), statistics.median(paired.bare_ms[WARM_UP:])


def _made_beforehand(data: RowsDataModule) -> None:
    batches = [data.train_batch(i) for i in range(4)]
    data.train_batch = lambda index, rank=0, ranks=1: batches[index % len(batches)]  # type: ignore[method-assign]


def main() -> None:
    for name, size in SIZES.items():
        trainer, bare = measure(*size)
        print(f"{name}: Trainer {trainer:.2f} ms, bare {bare:.2f} ms: {trainer - bare:+.2f} ms, ratio {trainer / bare:.3f}")


if __name__ == "__main__":
    main()
