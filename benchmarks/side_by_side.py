"""Small runs at once on one store: the rows they train on in sum, against one run that has the machine alone, and what they read from the disk.

    python -m benchmarks.side_by_side [--jobs 8] [--rows 400000] [--steps 200] [--rounds 3] [--folder FOLDER]

Commands as a user types them, alone and under `hydra/launcher=processes`, taking turns, on a store of d 256 (made in FOLDER, or in a
temporary one). Each step notes its time: rates are those of the seconds in which all runs train. Before each turn the store is dropped
from memory, and what the runs read from the disk, from before their training on, is given in sizes of the store. Printed are ratios, and no judgement.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.clocked_train import CLOCK
from benchmarks.stream import HOOK, forget, made

ROOT = Path(__file__).parents[1]
D, BATCH, SHARE_OF_WARM_UP = 256, 2048, 0.1
WORDS = (
    f"data=cached data.hook={HOOK} data.batch_size={BATCH} model=topk dictionary.expansion_factor=4 trainer.accelerator=cpu evaluate=[] logger=none "
    "callbacks=[final_validation] optimized_metric=val/l0"
)


def train(words: str, out: Path) -> list[dict[str, Any]]:
    """What the clocks of a command's runs say."""
    command = [sys.executable, "benchmarks/clocked_train.py", *words.split(), f"paths.multirun={out}", f"paths.outputs={out}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(path.read_text()) for path in out.rglob(CLOCK)]


def rate(clocks: list[dict[str, Any]]) -> float:
    """Rows a second in sum, while all of them train: behind the first steps of each, and before the first one ends."""
    first = max(clock["times"][round(SHARE_OF_WARM_UP * len(clock["times"]))] for clock in clocks)
    last = min(clock["times"][-1] for clock in clocks)
    if last <= first:
        raise SystemExit("the runs did not overlap: give more --steps")
    return BATCH * sum(first < t <= last for clock in clocks for t in clock["times"]) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = (settings.folder or Path(temporary)).absolute() / "store"
        made(store, settings.rows, D, "bfloat16")
        size = sum(path.stat().st_size for path in store.iterdir())
        words = f"{WORDS} data.store={store} trainer.max_steps={settings.steps}"
        seeds = ",".join(map(str, range(settings.jobs)))
        ratios, reads = [], []
        for turn in range(settings.rounds):
            forget(store)
            alone = train(words, Path(temporary) / f"alone-{turn}")
            forget(store)
            many = train(
                f"-m {words} hydra/launcher=processes hydra.launcher.n_jobs={settings.jobs} seed={seeds}", Path(temporary) / f"many-{turn}"
            )
            ratios.append(rate(many) / rate(alone))
            reads.append(sum(clock["read"] for clock in many) / size)
            print(
                f"{settings.jobs} runs at once / one alone: {ratios[-1]:.2f} of its rows a second; "
                f"read from the disk: {reads[-1]:.2f} stores (alone {alone[0]['read'] / size:.2f})",
                flush=True,
            )
    print(f"median: {statistics.median(ratios):.2f}, {statistics.median(reads):.2f} stores")


if __name__ == "__main__":
    main()
