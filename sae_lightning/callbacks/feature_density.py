"""How often each latent fires while it is trained."""

from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from sae_lightning.callbacks.images import log_image
from sae_lightning.curves import log_values
from sae_lightning.errors import InputError
from sae_lightning.metrics.density import density_numbers
from sae_lightning.module import SAEModule
from sae_lightning.report import plots
from sae_lightning.shards import Shards

PLOT = "plots/log_feature_density_histogram"


class FeatureDensity(L.Callback):
    """density_j = share of the rows of the last `feature_sampling_window` optimizer steps in which latent j fired (all ranks).

    Once per window, logged: sparsity/below_1e-5, sparsity/below_1e-6, sparsity/above_1e-2 and sparsity/above_1e-1 with their share of
    L0, sparsity/mean_log10_feature_sparsity, and sparsity/mean_passes_since_fired = mean over latents of the rows since each last
    fired. The histogram of log10(density) is <run>/plots/log_feature_density_histogram.png (of the latest window), and an
    image in loggers that take images. A run shorter than a window is one window. Errors: InputError for a window below 1.
    """

    def __init__(self, feature_sampling_window: int = 1000):
        if feature_sampling_window < 1:
            raise InputError(f"callbacks.feature_density.feature_sampling_window is {feature_sampling_window}: give a positive number")
        self.window = feature_sampling_window
        self.shards: Shards | None = None
        self.fires: Tensor | None = None
        self.rows: Tensor | None = None
        self.steps = 0

    def setup(self, trainer: L.Trainer, pl_module: SAEModule, stage: str) -> None:
        self.shards = pl_module.sae.dictionary.shards

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        if self.fires is not None and self.rows is not None:
            self.fires, self.rows = self.fires.to(pl_module.device), self.rows.to(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.sums:  # between optimizer steps only
            return
        sums = pl_module.step_sums
        self.fires = sums["fires"].clone() if self.fires is None else self.fires + sums["fires"]
        self.rows = sums["rows"].clone() if self.rows is None else self.rows + sums["rows"]
        self.steps += 1
        if self.steps >= self.window:
            self._log(trainer, pl_module)
            self.fires, self.rows, self.steps = None, None, 0

    def on_fit_end(self, trainer: L.Trainer, pl_module: SAEModule) -> None:  # also where a resumed run has nothing left to train
        if self.steps and self.steps == trainer.global_step:
            self._log(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        fires = self.fires if self.fires is None or self.shards is None else self.shards.whole(self.fires)
        return {"fires": fires, "rows": self.rows, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fires, self.rows, self.steps = state_dict["fires"], state_dict["rows"], state_dict["steps"]
        if self.fires is not None and self.shards is not None:
            self.fires = self.shards.cut(self.fires)

    def _log(self, trainer: L.Trainer, module: SAEModule) -> None:
        assert self.fires is not None
        assert self.rows is not None
        dictionary = module.sae.dictionary
        density = (dictionary.shards.whole(self.fires).double() / self.rows).cpu()
        silent = dictionary.total(dictionary.rows_since_fired.double().sum()) / dictionary.d_sae
        if not trainer.is_global_zero:
            return
        numbers = {f"sparsity/{name}": float(value) for name, value in density_numbers(density).items()}
        numbers["sparsity/mean_passes_since_fired"] = float(silent)
        log_values(trainer, numbers)  # first: W&B reads the picture before only when a new step is logged
        picture = Path(trainer.default_root_dir) / f"{PLOT}.png"
        plots.write(plots.density(density, f"how often latents fire, step {trainer.global_step}"), picture)
        for logger in trainer.loggers:
            log_image(logger, PLOT, picture, trainer.global_step)
