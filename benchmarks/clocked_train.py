"""train.py with a clock, for benchmarks.side_by_side: when each step ended, and what was read from the disk meanwhile."""

import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # as for train.py itself

import lightning as L  # noqa: E402
from hydra.core.hydra_config import HydraConfig  # noqa: E402

import train  # noqa: E402

CLOCK = "clock.json"


class Clock(L.Callback):
    """Leaves when each step ended, and the bytes that this process read from the disk from before its training on, in the run's folder."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.read = read_bytes()

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.time())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        found = {"times": self.times, "read": read_bytes() - self.read}
        (Path(HydraConfig.get().runtime.output_dir) / CLOCK).write_text(json.dumps(found))


def read_bytes() -> int:
    """From the disk, by this process so far: pages that were in memory do not count."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def main() -> None:
    fit = L.Trainer.fit

    def clocked(self: L.Trainer, *args: Any, **kwargs: Any) -> None:
        self.callbacks.append(Clock())  # type: ignore[attr-defined]
        fit(self, *args, **kwargs)

    L.Trainer.fit = clocked
    train.main()


if __name__ == "__main__":
    main()
