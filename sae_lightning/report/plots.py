"""Figures, as matplotlib objects and as PNG files. No display and no global state is touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lightning.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 60
POINTS = 10_000
"""The most that a figure holds: more are no easier to read, and slow to draw."""


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
    """Histogram of L0 over rows, with its mean."""
    return l0_counts(values.detach().cpu().long().bincount(), title)


def l0_counts(rows_with: Int[Tensor, " n"], title: str = "active latents per row") -> "Figure":
    """Histogram of L0 over rows, with its mean. rows_with: the number of rows with 0, 1, … n − 1 active latents, of which there must be one."""
    from matplotlib.ticker import MaxNLocator

    rows_with = rows_with.cpu()
    l0 = rows_with.nonzero().flatten()
    rows_with = rows_with[l0]
    least, most, mean = int(l0[0]), int(l0[-1]), float((l0 * rows_with).sum() / rows_with.sum())
    width = max(1, -(-(most - least + 1) // BINS))
    edges = torch.arange(least, most + width + 1, width) - 0.5
    figure, axes = _axes(title, "L0", "rows")
    axes.hist(l0.numpy(), bins=edges.tolist(), weights=rows_with.numpy())
    axes.axvline(mean, color="black", linewidth=1, label=f"mean {mean:.2f}")
    axes.set_xlim(-0.5, 1.25 * most + width)
    axes.margins(y=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper right")
    return figure


def density_against_activation(
    density: Float[Tensor, " d_sae"], activation: Float[Tensor, " d_sae"], title: str = "how often and how strongly latents fire"
) -> "Figure":
    """A point for each latent that fired, on two log scales; for each n-th of them, where they are more than `POINTS`.

    activation: the mean over the rows in which a latent fired, in raw units.
    """
    fired = (density > 0).nonzero().flatten()
    every = max(1, -(-len(fired) // POINTS))
    x, y = (values[fired[::every]].log10().numpy(force=True) for values in (density, activation))
    figure, axes = _axes(title, "log10 of the share of rows", "log10 of the mean activation (raw units)")
    label = f"{len(fired)} that fired" + (f" (1 in {every} drawn)" if every > 1 else "")
    axes.plot(x, y, ".", markersize=4, alpha=0.5, markeredgewidth=0, label=label)
    axes.plot([], [], " ", label=f"{len(density) - len(fired)} that never did")
    axes.legend(loc="upper right", markerscale=3)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.2 * (high - low))
    return figure


def decoder_encoder_cosine(cosine: Float[Tensor, " d_sae"], title: str = "encoder and decoder directions") -> "Figure":
    """Histogram of cos(W_enc[j], W_dec[j]) over the latents, with its median."""
    return _histograms({"": cosine}, title, "cosine of a latent's encoder and decoder direction")


def latent_norms(
    encoder: Float[Tensor, " d_sae"], decoder: Float[Tensor, " d_sae"], title: str = "norms of encoder and decoder directions"
) -> "Figure":
    """Histograms of ‖W_enc[j]‖ and ‖W_dec[j]‖ over the latents, with their medians. A line where they are all the same."""
    return _histograms({"encoder, ": encoder, "decoder, ": decoder}, title, "norm of a latent's direction (raw space)")


def write(figure: "Figure", path: str | Path) -> None:
    """Writes a PNG, atomically. Errors: InputError when the disk is full."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _histograms(named: Mapping[str, Float[Tensor, " d_sae"]], title: str, x: str) -> "Figure":
    """Over the latents, in the same bins, each with its median. What is not finite is left out.

    Values that are all but equal are a line beside others that are not, which they would dwarf.
    """
    finite = {name: values[values.isfinite()].double().cpu() for name, values in named.items()}
    finite = {name: values for name, values in finite.items() if len(values)}
    figure, axes = _axes(title, x, "latents")
    spread = {name: values for name, values in finite.items() if _vary(values)}
    edges = _edges(torch.cat([*(spread or finite).values(), torch.empty(0)]))
    for i, (name, values) in enumerate(finite.items()):
        median = float(values.median())
        label = f"{name}{'median' if name in spread else 'all'} {median:.3g}"
        if name in spread or not spread:
            heights = values.histc(len(edges) - 1, float(edges[0]), float(edges[-1]))
            axes.stairs(heights.numpy(), edges.tolist(), fill=True, alpha=0.6, color=f"C{i}", label=label)
            label = None
        axes.axvline(median, color=f"C{i}", linewidth=1.5, label=label)
    if finite:
        axes.legend(loc="best")
    return figure


def _edges(values: Float[Tensor, " n"]) -> Float[Tensor, " edges"]:
    """Of bins that hold all values. Where these are all but equal, they are in the middle one, and the bins a tenth of the largest wide in all."""
    if not len(values):
        return torch.linspace(0, 1, BINS + 1)
    low, high, largest = float(values.min()), float(values.max()), float(values.abs().max())
    if _vary(values):
        return torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    margin = 0.05 * largest or 0.05
    return torch.linspace(low - margin, high + margin, BINS + 2, dtype=torch.float64)


def _vary(values: Float[Tensor, " n"]) -> bool:
    """Whether they differ by more than a thousandth of the largest."""
    return float(values.max() - values.min()) > 1e-3 * float(values.abs().max())


def _axes(title: str, x: str, y: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes
