"""Figures, as matplotlib objects and as PNG files. No display and no global state is touched."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lightning.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60


def density(values: Float[Tensor, " d_sae"], title: str = "how often latents fire") -> "Figure":
    """Histogram of log10 density over the latents that fired; the number of those that did not is in the legend."""
    fired = values[values > 0]
    figure, axes = _axes(title, "log10 of the share of rows", "latents")
    if len(fired):
        axes.hist(fired.log10().numpy(force=True), bins=BINS, label=f"{len(fired)} that fired")
    axes.plot([], [], " ", label=f"{len(values) - len(fired)} that never did")
    axes.legend(loc="upper right")
    return figure


def l0_per_row(values: Float[Tensor, " rows"], title: str = "active latents per row") -> "Figure":
    """Histogram of L0 over rows, from 0 on, with its mean."""
    values = values.detach().cpu()
    least, most = int(values.min()), int(values.max())
    width = max(1, -(-(most - least + 1) // BINS))
    edges = torch.arange(least, most + width + 1, width) - 0.5
    figure, axes = _axes(title, "L0", "rows")
    axes.hist(values.numpy(), bins=edges.tolist())
    axes.axvline(float(values.mean()), color="black", linewidth=1, label=f"mean {float(values.mean()):.2f}")
    axes.set_xlim(-0.5, 1.25 * most + width)
    axes.legend(loc="upper right")
    return figure


def write(figure: "Figure", path: str | Path) -> None:
    """Writes a PNG, atomically. Errors: InputError when the disk is full."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _axes(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes
