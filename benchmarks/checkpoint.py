"""What a checkpoint and an export cost: bytes, seconds, memory; of a run of one process, and of strategy=shard_latents on two.

    python -m benchmarks.checkpoint                              # 8192 latents, d 1024: a minute
    python -m benchmarks.checkpoint --latents 65536 --d 4096     # 18 GB of memory, 30 GB of disk
    python -m benchmarks.checkpoint --folder /mnt/shared         # on another disk

A topk SAE after one step, so that Adam has its moments. Beside each: a plain torch.save (torch.load) of the same tensors, and a copy of the
same file; all of them end with an fsync, and what is read is not in the page cache before (where the disk can be told so). Memory is what
the process of rank 0 needs at its peak beyond what it had. Written by rank 0 alone, also with strategy=ddp: to it the rows of one process
apply. Read are checkpoints by every process of a run.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import lightning as L
import torch

from sae_lightning.callbacks.export import export
from sae_lightning.callbacks.last import save
from sae_lightning.checkpoint_io import AtomicCheckpointIO
from sae_lightning.module import SAEModule
from sae_lightning.run.build import build
from sae_lightning.run.checkpoints import newest
from sae_lightning.run.command import validate
from sae_lightning.run.composer import Composer

ROOT = Path(__file__).parents[1]
LAST, SAVED = "checkpoints/last.ckpt", "sae/sae.safetensors"
BESIDE = {"write": ("torch.save", "copy"), "read": ("torch.load",), "export": ("copy of the export",)}
QUIET = "callbacks=none logger=none evaluate=reconstruction nulls=false"


class Cost(NamedTuple):
    """Of one thing done: `mb` of its file, of memory beyond what there was."""

    seconds: float
    mb: float
    memory_mb: float


class AtTheEnd(L.Callback):
    """What a checkpoint costs, when the optimizer has its moments. Ways of doing the same take turns."""

    def __init__(self, folder: Path, rounds: int):
        self.folder, self.rounds = folder, rounds
        self.costs = defaultdict[str, list[Cost]](list)

    def on_train_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        for _ in range(self.rounds):
            with self.measured("write", self.folder / LAST):
                save(trainer, "last")
            with self.measured("export", self.folder / SAVED):
                export(trainer, pl_module, "sae", "latest")
            if trainer.is_global_zero:
                self._beside()
            trainer.strategy.barrier("round")

    def _beside(self) -> None:
        """The same bytes by plain means, each into a new file, as a checkpoint is; and back."""
        plain, copies = self.folder / "plain", [(LAST, "copy"), (SAVED, "copy of the export")]
        for file, name in copies:
            with self.measured(name, self.folder / name):
                shutil.copyfile(self.folder / file, self.folder / name)
                _to_disk(self.folder / name)
        _forget(self.folder / LAST)
        with self.measured("read", self.folder / LAST):
            newest(self.folder)
            checkpoint = AtomicCheckpointIO().load_checkpoint(self.folder / LAST)
        with self.measured("torch.save", plain), open(plain, "wb") as file:
            torch.save(checkpoint, file)
            os.fsync(file.fileno())
        del checkpoint
        _forget(plain)
        with self.measured("torch.load", plain):
            torch.load(plain, weights_only=True)
        for name in ("plain", *(name for _, name in copies)):
            (self.folder / name).unlink()

    @contextlib.contextmanager
    def measured(self, name: str, file: Path) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")
        before, began = _memory("VmRSS"), time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        size = file.stat().st_size if file.exists() else 0
        self.costs[name].append(Cost(seconds, size / 1e6, _memory("VmHWM") - before))


def _memory(name: str) -> float:
    """Of this process, in MB; VmHWM: the most since `clear_refs`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def _to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _forget(path: Path) -> None:
    """Out of the page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def costs(folder: Path, latents: int, d: int, rounds: int, words: str = "") -> dict[str, list[Cost]]:
    """Trains one step in `folder`; of rank 0."""
    size = f"data.d={d} data.n_directions=64 data.l0=3 data.batch_size=64 data.rows_held_out=64 dictionary.d_sae={latents}"
    rest = f"dictionary.expansion_factor=null model.k=8 trainer.max_steps=1 trainer.accelerator=cpu paths.run={folder} {QUIET}"
    run = build(validate(Composer(ROOT / "conf", "train"), f"{size} {rest} {words}".split()))
    looks = AtTheEnd(folder, rounds)
    run.trainer.callbacks.append(looks)  # type: ignore[attr-defined]
    run.trainer.fit(run.module, run.data)
    return dict(looks.costs)


def _process(rank: int, processes: int, port: int, told: Connection, folder: Path, latents: int, d: int, rounds: int) -> None:
    words = ""
    if processes > 1:
        os.environ |= {"TORCHELASTIC_RUN_ID": "checkpoint", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = f"strategy=shard_latents trainer.devices={processes}"
    found = costs(folder, latents, d, rounds, words)
    if rank == 0:
        told.send(found)


def measure(processes: int, folder: Path, latents: int, d: int, rounds: int, method: str = "spawn") -> dict[str, list[Cost]]:
    """Of rank 0, in processes of their own. Errors: EOFError where one has died."""
    context = multiprocessing.get_context(method)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told, tells = context.Pipe(duplex=False)
    group = [context.Process(target=_process, args=(rank, processes, port, tells, folder, latents, d, rounds)) for rank in range(processes)]  # type: ignore[attr-defined]
    for process in group:
        process.start()
    tells.close()
    try:
        return told.recv()
    finally:
        for process in group:
            process.join()


def show(name: str, found: dict[str, list[Cost]]) -> None:
    """Medians of seconds, and of ratios within a round; the most memory."""
    for what, others in BESIDE.items():
        seconds, mb = statistics.median(cost.seconds for cost in found[what]), found[what][-1].mb
        memory = {each: max(cost.memory_mb for cost in found[each]) for each in (what, *others)}
        ratios = [
            f"{statistics.median(a.seconds / b.seconds for a, b in zip(found[what], found[other], strict=True)):.2f} × {other}"
            for other in others
        ]
        loads = "".join(f" (torch.load: {memory[other]:.0f})" for other in others if other == "torch.load")
        print(
            f"{name:13s} {what:6s} {mb:6.0f} MB {seconds:7.2f} s {mb / seconds:6.0f} MB/s, memory {memory[what]:.0f} MB{loads}: {', '.join(ratios)}"
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--latents", type=int, default=8192)
    arguments.add_argument("--d", type=int, default=1024)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one is made in it")
    given = arguments.parse_args()
    for processes, name in ((1, "one process"), (2, "shard_latents")):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            show(name, measure(processes, Path(folder), given.latents, given.d, given.rounds))


if __name__ == "__main__":
    main()
