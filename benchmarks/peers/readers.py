"""Runs other libraries' readers of cached activations (rows.py), each in the environment that `make peers` made."""

import json
import subprocess
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from benchmarks.peers.client import ROOT

OTHERS = (
    ("sae_lens", "sae_lens", 8_192),
    ("sae_lens", "sae_lens", 65_536),
    ("sae_lens", "sae_lens", 131_072),
    ("litdata", "litdata", 0),
    ("datasets", "sae_lens", 0),
)
"""(library, environment, rows of its pool or 0 where it has none)."""
DIGIT = 1024
"""Whole numbers below it are exact in float16."""


class Other:
    """A library's reader on what `write_others` made below `folder`. Errors: RuntimeError where its environment was not made."""

    def __init__(self, folder: Path, library: str, environment: str, pool: int):
        self.folder, self.library, self.pool, self.version = folder, library, pool, ""
        self.python = ROOT / ".peers" / environment / "bin" / "python"
        if not self.python.exists():
            raise RuntimeError(f"there is no {self.python.relative_to(ROOT)}: run `make peers`")

    def __str__(self) -> str:
        return self.library + (f", pool {self.pool}" if self.pool else "")

    def read(self) -> float:
        """Rows per second of a pass in a process of its own, without what starting it takes."""
        said = self._run("read", self.folder / self.library, self._order_file, "--pool", self.pool)
        found = json.loads(said.splitlines()[-1])
        return found["rows"] / found["seconds"]

    def order(self) -> Int64[np.ndarray, " rows"]:
        """The numbers of the rows of the last pass, in the order in which they came."""
        high, low = np.load(self._order_file).astype(np.int64).T
        return DIGIT * high + low

    def write(self, rows: Path) -> None:
        self._run("write", rows, self.folder / self.library)

    @property
    def _order_file(self) -> Path:
        return self.folder / f"{self.library}-{self.pool}.npy"

    def _run(self, do: str, *arguments: object) -> str:
        command = [str(self.python), "-m", "benchmarks.peers.rows", self.library, do, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.library} at {do}: {done.stderr[-2000:]}")
        return done.stdout


def write_others(folder: Path, rows: int, d: int) -> None:
    """Normal numbers as float16, in what each library reads; the first two entries of a row say its number. What is there is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = {library: (library, environment, pool) for library, environment, pool in OTHERS if not (folder / library).exists()}
    if not missing:
        return
    values = np.random.default_rng(0).standard_normal((rows, d), dtype=np.float32).astype(np.float16)
    values[:, 0], values[:, 1] = np.divmod(np.arange(rows), DIGIT)
    np.save(folder / "rows.npy", values)
    for which in missing.values():
        Other(folder, *which).write(folder / "rows.npy")
    (folder / "rows.npy").unlink()
