"""What follows a training: the exported SAE is loaded again, scored on held-out rows, and shown."""

from pathlib import Path

from omegaconf import DictConfig

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.evaluation.run import Scores, evaluate
from sae_lightning.load import load_sae
from sae_lightning.ranks import part
from sae_lightning.report.table import table
from sae_lightning.run.build import build_evaluations
from sae_lightning.run.folder import rank


def score(cfg: DictConfig, data: RowsDataModule, folder: Path, sae: Path | None = None) -> Scores:
    """Evaluates the SAE in `sae` (None: `folder`/sae), writes scores.json and plots into `folder`, prints a table.

    Every rank of a run must call it; rank 0 does the work, alone.
    """
    from rich.console import Console

    part()
    evaluations = build_evaluations(cfg)
    if not evaluations or rank() != 0:
        return {}
    scores = evaluate(load_sae(sae or folder / "sae"), data, evaluations, folder, nulls=cfg.nulls)
    Console().print(table(scores))
    print(f"run     {_short(folder)}\nsae     {_short(sae or folder / 'sae')}\nscores  {_short(folder / 'scores.json')}", flush=True)
    return scores


def _short(path: Path) -> Path:
    """Relative to the folder where the command was typed, where it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
