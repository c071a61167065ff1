"""What a reader takes away: the best of each architecture, the comparison over seeds, and what it cost."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table

from benchmarks.quality.plan import OURS, best, leader, misses, with_form
from benchmarks.quality.results import Row
from sae_lightning.report.table import number

COLUMNS = {
    "explained variance": "explained_variance",
    "F1": "recovery_f1",
    "KL": "kl",
    "delta CE": "delta_ce",
    "dead %": "dead_pct",
    "L0": "l0",
    "lr": "lr",
    "seconds": "seconds",
}
MARGIN = 0.005
"""Of explained variance: less than so much worse than the best other library is not worse."""


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Of each architecture, L0 and kind of rows the learning rate and form that are best on validation rows, seed 0, by explained variance on them."""

    def place(row: Row) -> tuple:
        return row["rows"] == "stories", row["l0_wanted"], row["library"], row["model"], row["steps"]

    first = sorted((row for row in rows if row["seed"] == 0), key=place)
    found = [dict(best(list(group))) for _, group in groupby(first, key=place)]
    return sorted(found, key=lambda row: (*place(row)[:2], -row["explained_variance_validation"]))


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """For each kind of rows and L0, everything that was trained on them, the best first."""
    for (kind, l0), group in groupby(chosen(rows), key=lambda row: (row["rows"], row["l0_wanted"])):
        lines = list(group)
        columns = {title: name for title, name in COLUMNS.items() if any(not math.isnan(row[name]) for row in lines)}
        made = Table(
            title=f"{kind} rows, L0 {l0}: test rows, learning rate by validation rows, {lines[0]['steps']} steps", title_justify="left"
        )
        made.add_column("")
        for title in columns:
            made.add_column(title, justify="right")
        for row in lines:
            label = ("" if row["library"] == OURS else f"{row['library']} ") + with_form(row["model"], row["form"])
            values = [number(row[name]) if name != "lr" or row[name] else "–" for name in columns.values()]
            made.add_row(label + (" (missed L0)" if row["knob"] and misses(row) else ""), *values)
        yield made


def paired(rows: Sequence[Row]) -> Table | None:
    """Ours against the best other library of each architecture, seed by seed; None where there is nothing to compare.

    Non-inferior: the 95 % confidence limit (one-sided, Student's t) of the mean difference lies above −0.005.
    """
    made = Table(title="explained variance against the best other library, paired over seeds", title_justify="left")
    for column in ("", "ours", "best other", "difference", "standard error", "seeds", f"within {MARGIN}"):
        made.add_column(column, justify="left" if not column else "right")
    synthetic = [row for row in rows if row["rows"] == "synthetic"]
    for model, l0, steps in sorted({(row["model"], row["l0_wanted"], row["steps"]) for row in synthetic if row["library"] != OURS}):
        at = [row for row in synthetic if (row["model"], row["l0_wanted"], row["steps"]) == (model, l0, steps)]
        peer = leader(at)
        ours, theirs = ([], []) if peer is None else seeds_in_common(at, peer)
        if len(ours) < 2:
            continue
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        mean, error = statistics.mean(differences), standard_error(differences)
        verdict = "yes" if is_within(mean, error, len(ours)) else "no"
        cells = f"{statistics.mean(ours):.4f}", f"{statistics.mean(theirs):.4f} {peer}", f"{mean:+.4f}", f"{error:.4f}"
        made.add_row(f"{model}, L0 {l0}", *cells, str(len(ours)), verdict)
    return made if made.rows else None


def seeds_in_common(rows: Sequence[Row], library: str) -> tuple[list[float], list[float]]:
    """Ours and those of another library, of one architecture and L0: seed by seed, for the seeds that both have."""
    ours, theirs = (by_seed([row for row in rows if row["library"] == name]) for name in (OURS, library))
    seeds = sorted(set(ours) & set(theirs))
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def by_seed(rows: Sequence[Row]) -> dict[int, float]:
    """On test rows, with one learning rate and form for all seeds: those which validation rows of seed 0 chose."""
    chosen = best([row for row in rows if row["seed"] == 0] or rows)
    return {row["seed"]: row["explained_variance"] for row in rows if (row["lr"], row["form"]) == (chosen["lr"], chosen["form"])}


def standard_error(differences: Sequence[float]) -> float:
    return statistics.stdev(differences) / math.sqrt(len(differences))


def is_within(mean: float, error: float, n: int) -> bool:
    from scipy.stats import t

    return mean - float(t.ppf(0.95, n - 1)) * error > -MARGIN


def costs(rows: Sequence[Row]) -> Table:
    """Jobs and minutes of one thread."""
    made = Table(title="what it took (minutes of one thread)", title_justify="left")
    for column in ("", "jobs", "minutes", "mean seconds of a training"):
        made.add_column(column, justify="left" if not column else "right")

    def place(row: Row) -> tuple:
        return row["library"] != OURS, row["library"], row["rows"] == "stories", row["seed"] > 0, row["l0_wanted"]

    for (_, library, is_stories, is_seed, l0), group in groupby(sorted(rows, key=place), key=place):
        lines = list(group)
        label = f"{library}: {'stories' if is_stories else 'synthetic'}, L0 {l0}{', other seeds' if is_seed else ''}"
        minutes = sum(row["seconds_total"] for row in lines) / 60
        made.add_row(label, str(len(lines)), f"{minutes:.1f}", f"{statistics.mean(row['seconds'] for row in lines):.0f}")
    made.add_row("together", str(len(rows)), f"{sum(row['seconds_total'] for row in rows) / 60:.1f}", "")
    return made
