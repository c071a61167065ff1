"""What all logging costs: steps of a run that logs everything, csv and W&B (offline) with its histograms, against one that logs nothing.

    python -m benchmarks.logging [--rounds 5]

Two runs of the same batches take turns, block by block of as many steps as lie between two logged ones, at two sizes. Rows are made
beforehand. Printed are medians of a step over blocks and their ratio; validations, pictures and checkpoints are in neither.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import lightning as L
import torch

from benchmarks.trainer_overhead import ROOT, SIZES
from sae_lightning.run.build import Run, build
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer

BLOCK, WARM_UP = 50, 2
"""Steps between two that are logged; blocks that are not counted."""
SIDES = {
    "nothing": "logger=none callbacks=[final_validation]",
    "csv": "logger=csv",
    "everything": "logger=[csv,wandb] logger.wandb.mode=offline logger.wandb.watch=all logger.wandb.log_code=false",
}


class Turn(L.Callback):
    """Lets the other runs go on after each block, and waits for its own turn; the milliseconds of a step in each block."""

    def __init__(self, turns: "Turns", name: str):
        self.turns, self.name, self.ms = turns, name, []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.turns.wait(self.name)
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if trainer.global_step % BLOCK == 0:
            self.ms.append(1e3 * (time.perf_counter() - self.began) / BLOCK)
            self.turns.next()
            self.turns.wait(self.name)
            self.began = time.perf_counter()


class Turns:
    """One thread at a time."""

    def __init__(self, names: list[str]):
        self.waiting, self.condition = list(names), threading.Condition()

    def wait(self, name: str) -> None:
        with self.condition:
            self.condition.wait_for(lambda: name not in self.waiting or self.waiting[0] == name)

    def next(self) -> None:
        with self.condition:
            self.waiting = [*self.waiting[1:], self.waiting[0]]
            self.condition.notify_all()

    def leave(self, name: str) -> None:
        with self.condition:
            self.waiting = [other for other in self.waiting if other != name]
            self.condition.notify_all()


def measure(d: int, d_sae: int, batch: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of a step of each side."""
    turns, clocks, threads = Turns(list(SIDES)), {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, words in SIDES.items():
            run = _built(words, d, d_sae, batch, BLOCK * (rounds + WARM_UP), Path(folder) / name)
            clocks[name] = Turn(turns, name)
            run.trainer.callbacks.append(clocks[name])  # type: ignore[attr-defined]
            threads.append(threading.Thread(target=_fit, args=(run, turns, name)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {name: statistics.median(clock.ms[WARM_UP:]) for name, clock in clocks.items()}


def _built(words: str, d: int, d_sae: int, batch: int, steps: int, folder: Path) -> Run:
    words = (
        f"{words} model=topk repeat_batches=4 trainer.max_steps={steps} trainer.log_every_n_steps={BLOCK} trainer.val_check_interval={10**9} "
        f"trainer.accelerator=cpu data.d={d} data.n_directions={2 * d} data.batch_size={batch} data.rows_held_out={batch} "
        f"dictionary.expansion_factor=null dictionary.d_sae={d_sae} paths.run={folder}"
    )
    if "logger=none" not in words:
        words += " callbacks.last=null callbacks.best=null callbacks.export=null callbacks.progress_bar=null"
    run = build(validate(Composer(ROOT / "conf", "train"), words.split()))
    batches = [run.data.train_batch(i) for i in range(4)]
    run.data.train_batch = lambda index, rank=0, ranks=1: batches[index % 4]  # type: ignore[method-assign]
    return run


def _fit(run: Run, turns: Turns, name: str) -> None:
    try:
        run.trainer.fit(run.module, run.data)
    finally:
        turns.leave(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["WANDB_SILENT"] = "true"
    for name, (d, d_sae, batch, _) in SIZES.items():
        with contextlib.redirect_stderr(None):
            ms = measure(d, d_sae, batch, rounds)
        ratios = ", ".join(f"{side} {value:.2f} ms ({value / ms['nothing']:.3f})" for side, value in ms.items())
        print(f"{name}, {torch.get_num_threads()} threads: {ratios}", flush=True)


if __name__ == "__main__":
    main()
