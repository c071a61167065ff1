"""Scores as one reads them in a terminal."""

import math
from collections.abc import Mapping

from rich.table import Table

HEADLINES = (
    "explained_variance",
    "normalised_mse",
    "cosine",
    "l0",
    "dead_pct",
    "above_1e-1",
    "above_1e-1_share_of_l0",
    "redundancy_above_0.9",
    "stability_mean_cosine",
    "stability_above_0.7",
    "stability_chance",
    "recovery",
    "recovery_f1",
    "recovery_mean_cosine",
    "recovery_chance",
    "ce_clean",
    "ce_sae",
    "ce_ablated",
    "ce_ablated_mean",
    "ce_unigram",
    "delta_ce",
    "ce_recovered",
    "ce_recovered_mean",
    "kl",
    "top1_agreement",
    "probing_accuracy_1",
    "probing_accuracy_5",
    "probing_raw_accuracy",
    "absorption",
    "rows",
    "tokens",
)


def table(scores: Mapping[str, Mapping[str, float]], title: str | None = None, names: tuple[str, ...] = HEADLINES) -> Table:
    """One line for each of `names` that somebody has, one column for each thing that was evaluated."""
    made = Table(title=title, title_justify="left")
    shown = [name for name in names if any(name in values for values in scores.values())]
    made.add_column("held-out rows", no_wrap=True, min_width=max(map(len, shown), default=0))
    for row in scores:
        made.add_column(row.replace("_", " "), justify="right")
    for name in shown:
        made.add_row(name, *(number(values.get(name)) for values in scores.values()))
    return made


def number(value: float | None) -> str:
    """Four significant digits, whole numbers as they are; – for what is missing or not a number."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.0f}" if value.is_integer() and abs(value) >= 1000 else f"{value:.4g}"
