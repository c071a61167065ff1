"""A comparison at the same L0: tables, matched.csv, matched.json, matched.png."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sae_lightning.evaluation.comparison import Comparison, Matched, Trained
from sae_lightning.evaluation.fronts import Paired, Piece
from sae_lightning.files import replacing, write_json
from sae_lightning.report.table import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OF_PAIRS = ("mean", "standard_error", "low", "high", "n")


def tables(of: Comparison) -> Iterator[Table]:
    """Scores at each L0 with their differences from the baseline, then the areas between fronts."""
    baseline = of.architectures[0]
    about = f"{of.metric} at the same L0 ({'lower' if of.is_less_better else 'higher'} is better), learning rate by {of.chosen_by}"
    made = Table(title=about, title_justify="left", caption_justify="left")
    made.caption = f"differences from {baseline}, paired over seeds; two-sided 95 % t intervals, each by itself"
    for column in ("L0", "", "lr", of.metric, "seeds", "difference", "standard error", "95 % interval", "pairs", ""):
        made.add_column(column, justify="left" if not column else "right")
    for one in of.matched:
        mean = fmean(one.scores.values()) if one.scores else None
        cells = f"{one.l0:g}", one.architecture, number(one.lr), number(mean), str(len(one.scores))
        made.add_row(*cells, *_cells(one.difference, of.is_less_better), end_section=one is _last_at(of.matched, one.l0))
    yield made
    areas = Table(title=f"{of.metric}: area between Pareto fronts, as a mean over log L0", title_justify="left")
    for column in ("", "L0", "difference", "standard error", "95 % interval", "pairs", ""):
        areas.add_column(column, justify="left" if not column else "right")
    for area in of.areas:
        ends = "–" if area.low is None else f"{number(area.low)} to {number(area.high)}"
        areas.add_row(area.architecture, ends, *_cells(area.difference, of.is_less_better))
    yield areas


def _last_at(matched: Sequence[Matched], l0: float) -> Matched:
    return [one for one in matched if one.l0 == l0][-1]


def _cells(found: Paired | None, is_less_better: bool) -> tuple[str, ...]:
    """Difference, standard error, interval, pairs, and a word where the interval leaves out 0."""
    if found is None:
        return "–", "–", "–", "–", ""
    if found.n < 2:
        return f"{found.mean:+.3g}", "–", "–", "1", ""
    is_clear = found.low > 0 or found.high < 0
    verdict = "" if not is_clear else "better" if (found.mean > 0) != is_less_better else "worse"
    return f"{found.mean:+.3g}", f"{found.standard_error:.2g}", f"{found.low:+.3g} … {found.high:+.3g}", str(found.n), verdict


def write(of: Comparison, folder: Path, about: Mapping[str, Any]) -> None:
    """The three files. `about`: what the command was."""
    from sae_lightning.report import plots

    write_json(folder / "matched.json", {**about, **as_json(of)})
    with replacing(folder / "matched.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines(of))
    plots.write(figure(of), folder / "matched.png")


def lines(of: Comparison) -> Iterator[list[Any]]:
    """Of matched.csv: a line for each architecture at each L0, and one for each area. Empty: not there."""
    yield ["what", "l0_low", "l0_high", "architecture", "lr", of.metric, "seeds", "outside", *(f"difference_{name}" for name in OF_PAIRS)]
    for one in of.matched:
        mean = fmean(one.scores.values()) if one.scores else ""
        lr = "" if one.lr is None else one.lr
        yield ["matched", one.l0, one.l0, one.architecture, lr, mean, len(one.scores), len(one.outside), *_numbers(one.difference)]
    for area in of.areas:
        ends = ["" if end is None else end for end in (area.low, area.high)]
        yield ["area", *ends, area.architecture, "", "", len(area.differences), "", *_numbers(area.difference)]


def _numbers(found: Paired | None) -> list[Any]:
    return [""] * len(OF_PAIRS) if found is None else ["" if math.isnan(value) else value for value in found]


def as_json(of: Comparison) -> dict[str, Any]:
    """Every number behind the tables and the picture; null for what is not there."""
    return {
        "metric": of.metric,
        "direction": "minimize" if of.is_less_better else "maximize",
        "learning_rate_by": of.chosen_by,
        "baseline": of.architectures[0],
        "matched": [one._asdict() | {"difference": _as_json(one.difference)} for one in of.matched],
        "areas": [one._asdict() | {"difference": _as_json(one.difference)} for one in of.areas],
        "fronts": of.fronts,
        "notes": of.notes,
        "jobs": [job._asdict() for job in of.jobs],
    }


def _as_json(found: Paired | None) -> dict[str, float | None] | None:
    return None if found is None else {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def figure(of: Comparison) -> "Figure":
    """The fronts of all seeds with every job as a point; beside them the differences at each L0, and the area between fronts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    made = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = made.subplots(1, 2)
    for i, name in enumerate(of.architectures):
        _front(left, [job for job in of.jobs if job.architecture == name], list(of.fronts[name].values()), f"C{i % 10}", name)
    for i, name in enumerate(of.architectures[1:], 1):
        _differences(right, of, name, i)
    left.set(title="Pareto fronts, one for each seed", ylabel=of.metric)
    better = "below 0: better" if of.is_less_better else "above 0: better"
    right.set(title=f"difference from {of.architectures[0]} ({better})", ylabel=f"difference in {of.metric}")
    right.axhline(0, color="black", linewidth=0.8)
    places = sorted({one.l0 for one in of.matched})
    for axes in (left, right):
        axes.set(xscale="log", xlabel="L0")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize=8)
    left.xaxis.set_major_locator(LogLocator(base=2))
    right.set_xticks(places)
    ends = [end for area in of.areas for end in (area.low, area.high) if end is not None]
    right.set_xlim(min(places + ends) / 1.1, max(places + ends) * 1.1)
    return made


def _front(axes: "Axes", jobs: Sequence[Trained], fronts: Sequence[Sequence[Piece]], colour: str, name: str) -> None:
    points = [job.scored for job in jobs if job.scored]
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color=colour, markersize=4.5, alpha=0.5, markeredgewidth=0)
    for i, pieces in enumerate(fronts):
        front = [point for piece in pieces for point in piece]
        axes.plot([x for x, _ in front], [y for _, y in front], color=colour, linewidth=1, label=name if i == 0 else None)


def _differences(axes: "Axes", of: Comparison, name: str, i: int) -> None:
    """Side by side at each L0; a band for the area, over the range of L0 that it is of."""
    shift = 1.03 ** (i - len(of.architectures) / 2)
    found = [(one.l0 * shift, one.difference) for one in of.matched if one.architecture == name and one.difference]
    means, errors = [d.mean for _, d in found], [0 if math.isnan(d.low) else d.mean - d.low for _, d in found]
    colour, area = f"C{i % 10}", next(area for area in of.areas if area.architecture == name)
    label = name if area.difference is None else f"{name}; mean over log L0: {area.difference.mean:+.3g}"
    axes.errorbar([x for x, _ in found], means, errors, fmt="o", color=colour, capsize=3, markersize=4, label=label)
    if area.difference is None or area.low is None or area.high is None:
        return
    axes.plot([area.low, area.high], [area.difference.mean] * 2, "--", color=colour, linewidth=1)
    if not math.isnan(area.difference.low):
        axes.fill_between([area.low, area.high], area.difference.low, area.difference.high, color=colour, alpha=0.12, linewidth=0)
