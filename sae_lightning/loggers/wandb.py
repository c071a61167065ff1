"""Curves at Weights & Biases."""

import os
import secrets
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from sae_lightning.files import write_text
from sae_lightning.run.folder import of_agent


class WandB(WandbLogger):
    """Lightning's logger; a run that is resumed is the same run there, too.

    The id of the run stands in <save_dir>/wandb_id, and is kept where there is one; where a W&B agent started the run it is the agent's.
    The runs of a sweep are a group of its name. What else W&B wants to know it takes from its environment: WANDB_PROJECT (sae_lightning
    where it names none), WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, …
    """

    def __init__(self, save_dir: str, project: str | None = None, name: str | None = None, offline: bool = False):
        super().__init__(
            name=name,
            save_dir=save_dir,
            offline=offline,
            id=_id(Path(save_dir) / "wandb_id"),
            project=project or os.environ.get("WANDB_PROJECT") or "sae_lightning",
            group=os.environ.get("WANDB_RUN_GROUP") or _sweep(Path(save_dir).absolute()),
        )


def _sweep(folder: Path) -> str | None:
    """The name of the sweep that a run's folder is in."""
    return folder.parent.name if (folder.parent / "multirun.yaml").is_file() else None


def _id(path: Path) -> str:
    """The recorded id, or a new one, which rank 0 records."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = of_agent(os.environ) or secrets.token_hex(4)
    if rank_zero_only.rank == 0:
        write_text(path, made + "\n")
    return made
