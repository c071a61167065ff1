"""The names that other guides and libraries have for what is logged here."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from sae_lightning.errors import InputError
from sae_lightning.run.suggest import did_you_mean

SETS: dict[str, dict[str, str]] = {
    "splatnlp": {
        "train/mse_loss": "train/mse",
        "train/l1_loss": "train/l1",
        "train/kl_loss": "train/usage",
        "train/mean_sparsity": "train/l0",
        "train/dead_neurons": "train/dead",
        "train/dead_neuron_pct": "train/dead_pct",
        "train/lr": "details/learning_rate",
        "train/buffer_fill_pct": "details/buffer_fill_pct",
        "val/mse_loss": "val/mse",
        "val/mean_sparsity": "val/l0",
        "val/dead_neurons": "val/dead",
    },
    "prisma": {
        "losses/mse_loss": "train/mse_over_norm",
        "losses/l1_loss": "loss/sparsity",
        "losses/ghost_grad_loss": "loss/ghost_grads",
        "losses/overall_loss": "train/loss",
        "metrics/explained_variance": "train/explained_variance",
        "metrics/explained_variance_std": "train/explained_variance_std",
        "metrics/l0": "train/l0",
        "metrics/mean_log10_feature_sparsity": "sparsity/mean_log10_feature_sparsity",
        "sparsity/dead_features": "train/dead",
        "details/current_learning_rate": "details/learning_rate",
        "details/n_training_tokens": "details/tokens",
        "details/n_training_images": "details/images",
    },
    "lagrangian": {
        "loss": "train/loss",
        "mse_loss": "train/mse",
        "sparsity_loss": "loss/constraint",
        "aux_loss": "loss/auxk",
        "l0": "train/l0",
        "explained_variance": "train/explained_variance",
        "alive_dict_components": "train/alive",
    },
    "guide": {
        "total_loss": "train/loss",
        "latent_mean": "train/latents_mean",
        "latent_std": "train/latents_std",
        "latent_min": "train/latents_min",
        "latent_max": "train/latents_max",
        "latent_norm": "train/latents_norm",
        "grad_mean": "gradients/mean",
        "grad_std": "gradients/std",
        "grad_max": "gradients/max",
        "grad_norm": "gradients/norm",
        "gpu_memory_used": "hardware/gpu_memory_gb",
        "gpu_memory_percent": "hardware/gpu_memory_pct",
        "cpu_percent": "hardware/cpu_pct",
        "learning_rate": "details/learning_rate",
        "batch_size": "details/batch_size",
        "epoch": "details/epoch",
        "epoch_train_loss_avg": "details/epoch_train_loss_avg",
        "epoch_val_loss_avg": "details/epoch_val_loss_avg",
        "val_train_loss_ratio": "details/val_train_loss_ratio",
        "gradient_norm_trend": "gradients/norm_trend",
        "latent_std_trend": "latents/std_trend",
    },
}
"""By guide: its name for a number, and ours. What has the same name here (train/loss, val/miracle_distance, …) needs none."""


def check_names(sets: Sequence[str]) -> None:
    """Errors: InputError for a guide that is not in SETS."""
    for name in sets:
        if name not in SETS:
            raise InputError(f"logger.names={name}: there is no such set of names{did_you_mean(name, SETS)}")


def add_names_(logger: Logger, sets: Sequence[str]) -> None:
    """From here on a logger gets every number under the names of these guides, too, at the step at which it is logged."""
    others = [pair for name in sets for pair in SETS[name].items()]
    plain = logger.log_metrics

    @functools.wraps(plain)
    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        plain({**metrics, **{name: metrics[ours] for name, ours in others if ours in metrics}}, step)

    logger.log_metrics = log_metrics  # type: ignore[method-assign]
