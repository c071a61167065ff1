"""What giving up hopeless trials saves, and what it costs: the same searches with Hyperband and without.

    python -m benchmarks.hyperband [--seeds 5] [--trials 64] [--out FOLDER]

Known directions (d 32, 128 of them), relu, its own space; 27 validations a run, rungs at 1, 3, 9. Printed is, study by study, how many
rows were trained with Hyperband as a share of those without, and by how much the best of its trials is worse. Of so many trials that both
have found the bottom: the best of 24 is luck, and differs by a third between studies that prune nothing. Kept in FOLDER, a run of the
benchmark that was stopped goes on.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from sae_lightning.sweeps.devices import cores
from sae_lightning.sweeps.results import read

ROOT = Path(__file__).parents[1]
WORDS = (
    "-m hydra/sweeper=optuna model=relu data.d=32 data.n_directions=128 data.l0=6 data.rows_held_out=2048 data.batch_size=512 "
    "trainer.max_steps=540 trainer.val_check_interval=20 trainer.log_every_n_steps=20 trainer.accelerator=cpu evaluate=[] "
    "callbacks=[miracle_distance,final_validation,trial,last]"
)
BATCH = 512


class Searched(NamedTuple):
    """Of one study: rows that all its trials trained on, and its best objective."""

    rows: int
    best: float
    given_up: int


def search(pruner: str, seed: int, trials: int, out: Path) -> Searched:
    """One study, as a user would type it."""
    name = f"{pruner}-{seed}"
    words = [
        *WORDS.split(),
        f"sweep/pruner={pruner}",
        f"sweep.seed={seed}",
        f"sweep.n_trials={trials}",
        f"sweep.name={name}",
        f"paths.multirun={out}",
    ]
    subprocess.run([sys.executable, ROOT / "train.py", *words], check=True, stdout=subprocess.DEVNULL)
    found = read(out / name)
    assert found.best is not None
    rows = BATCH * sum(job.step for job in found.jobs)
    return Searched(rows, found.best.metrics[next(iter(found.objectives))], sum(not job.is_complete for job in found.jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    out = (settings.out or Path(tempfile.mkdtemp())).absolute()
    studies = [(pruner, seed) for seed in range(settings.seeds) for pruner in ("hyperband", "none")]
    with ThreadPoolExecutor(cores()) as pool:
        found = dict(zip(studies, pool.map(lambda study: search(study[0], study[1], settings.trials, out), studies), strict=True))
    shares, worse = [], []
    for seed in range(settings.seeds):
        pruned, whole = found["hyperband", seed], found["none", seed]
        shares.append(pruned.rows / whole.rows)
        worse.append(pruned.best / whole.best - 1)
        print(
            f"study {seed}: {shares[-1]:.2f} of the rows ({pruned.given_up} of {settings.trials} trials given up); "
            f"best {pruned.best:.4f}, without {whole.best:.4f}: {worse[-1]:+.1%}"
        )
    print(f"mean: {mean(shares):.2f} of the rows, best {mean(worse):+.1%}")


if __name__ == "__main__":
    main()
