"""The SAE as one uses it, beside the run that trained it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L

from sae_lightning.data.rows import RowsDataModule
from sae_lightning.module import SAEModule


class Export(L.Callback):
    """Writes <run>/sae at the end of training: json and safetensors, for `sae_lightning.load.load_sae`.

    Also when nothing was left to train: the run before this one may have been killed between its last checkpoint and here.
    """

    def on_fit_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        export(trainer, pl_module, "sae", "latest")


def export(trainer: L.Trainer, module: SAEModule, name: str, alias: str, about: Mapping[str, Any] | None = None) -> None:
    """Writes the SAE as it is now into <run>/<name>, with what is known of it and `about`. Every rank must call it.

    Loggers that keep versions of files get it under `alias`.
    """
    sae = module.export()
    if trainer.is_global_zero:
        path, known = Path(trainer.default_root_dir) / name, description(trainer, module) | dict(about or {})
        sae.save(path, known)
        keep(trainer, path, "sae", alias, known)
    trainer.strategy.barrier("export")


def keep(trainer: L.Trainer, path: Path, kind: str, alias: str, about: Mapping[str, Any]) -> None:
    """Hands a folder or a file to loggers that keep versions of them. Rank 0 only."""
    for logger in trainer.loggers:
        if isinstance(logger, Keeping):
            logger.keep(path, kind, alias, dict(about))


@runtime_checkable
class Keeping(Protocol):
    """A logger that keeps versions of files. `kind`: sae or checkpoint; `alias`: latest or best; `about`: JSON-able."""

    def keep(self, path: Path, kind: str, alias: str, about: dict[str, Any]) -> None: ...


def description(trainer: L.Trainer, module: SAEModule) -> dict[str, Any]:
    """What a stranger must know of an SAE: JSON-able."""
    data: RowsDataModule = trainer.datamodule  # type: ignore[attr-defined]
    known = {
        "architecture": module.sae.architecture,
        "step": trainer.global_step,
        "rows": data.rows_trained,
        "views": data.views,
        "widths": {"x": list(data.shape.x), "y": list(data.shape.y)},
    }
    if data.network is not None:
        hooks = {"x": list(data.hooks.x), "y": list(data.hooks.y)}
        transformer = {"name": data.network.name} | data.network.identity()
        known |= {"transformer": transformer, "hook": data.hook, "hooks": hooks}
    return known | ({"data": data.origin} if data.origin else {})
