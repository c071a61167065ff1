"""Pictures of a sweep: which setting, and what does it cost."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sae_lightning.report.plots import _axes
from sae_lightning.sweeps.results import Result, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 12
LEAST_FOR_IMPORTANCE = 8
"""Jobs: a forest over fewer says nothing."""


def figures(results: Results) -> Iterator[tuple[str, str, "Figure"]]:
    """(name, what it shows, figure), for what there is enough of."""
    for metric, title in (("val/explained_variance", "explained variance"), ("kl", "KL")):
        is_less_better = metric == "kl"
        found = [job for job in results.jobs if _has(job, "val/l0") and _has(job, metric)]
        if len(found) > 1:
            yield f"l0_{title.replace(' ', '_').lower()}", f"L0 against {title}", front(found, metric, title, is_less_better)
    metric, direction = next(iter(results.objectives.items()))
    told = [job for job in results.jobs if _has(job, metric)]
    if not told:
        return
    yield "history", f"{metric} by job", history(told, metric, direction)
    if any(len(job.curve) > 1 for job in results.jobs):
        yield "curves", f"{metric} while training", curves(results.jobs, metric)
    settings = [key for key in results.varied if len({str(job.settings.get(key)) for job in told}) > 1]
    if settings and len(told) > 2:
        yield "slices", f"{metric} by setting", slices(told, metric, settings)
        is_flat = len({job.metrics[metric] for job in told}) == 1
        numbers = [key for key in settings if not is_flat and all(_is_number(job.settings.get(key)) for job in told)]
        if numbers:
            yield "correlations", f"rank correlation of settings with {metric}", correlations(told, metric, numbers)
    if len(settings) > 1 and len(told) >= LEAST_FOR_IMPORTANCE and can_weigh():
        yield "importance", f"how much of {metric} each setting decides", importance(told, metric, settings)
    if len(settings) > 1:
        yield "parallel", "settings side by side, coloured by the objective", parallel(told, metric, settings)


def front(jobs: Sequence[Result], metric: str, title: str, is_less_better: bool) -> "Figure":
    """Each job; a line through those that none has fewer active latents than with as good a value."""
    figure, axes = _axes(f"L0 against {title}", "L0", title)
    _points(axes, jobs, [job.metrics["val/l0"] for job in jobs], [job.metrics[metric] for job in jobs])
    best = pareto(jobs, metric, is_less_better)
    axes.plot([job.metrics["val/l0"] for job in best], [job.metrics[metric] for job in best], color="C3", label="Pareto front")
    for job in best[:MOST_LABELS]:
        axes.annotate(str(job.number), (job.metrics["val/l0"], job.metrics[metric]), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set_xscale("log")
    for of in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        of("{x:g}")
    axes.legend(loc="best", fontsize=8)
    return figure


def pareto(jobs: Sequence[Result], metric: str, is_less_better: bool) -> list[Result]:
    """Those jobs that none beats at as few active latents, from few to many."""
    sign, best, found = (1 if is_less_better else -1), math.inf, []
    for job in sorted(jobs, key=lambda job: (job.metrics["val/l0"], sign * job.metrics[metric])):
        if sign * job.metrics[metric] < best:
            best = sign * job.metrics[metric]
            found.append(job)
    return found


def history(jobs: Sequence[Result], metric: str, direction: str) -> "Figure":
    """The objective of each job, and the best so far among those that were trained to their end."""
    figure, axes = _axes(f"{metric} by job", "job", metric)
    _points(axes, jobs, [job.number for job in jobs], [job.metrics[metric] for job in jobs])
    complete = [job for job in jobs if job.is_complete]
    pick = np.minimum if direction == "minimize" else np.maximum
    if complete:
        so_far = pick.accumulate([job.metrics[metric] for job in complete])
        axes.step([job.number for job in complete], so_far, where="post", color="C3", label="best so far")
    axes.legend(loc="best", fontsize=8)
    return figure


def curves(jobs: Sequence[Result], metric: str) -> "Figure":
    """What each validation said; what was given up ends early."""
    figure, axes = _axes(f"{metric} while training", "optimizer step", metric)
    for job in jobs:
        if job.curve:
            steps = sorted(job.curve)
            axes.plot(steps, [job.curve[step] for step in steps], color="C0" if job.is_complete else "0.7", linewidth=1)
            axes.plot(steps[-1:], [job.curve[steps[-1]]], "o", color="C0" if job.is_complete else "0.7", markersize=3)
    axes.plot([], [], color="C0", label="complete")
    axes.plot([], [], color="0.7", label="given up, failed or stopped")
    axes.legend(loc="best", fontsize=8)
    return figure


def slices(jobs: Sequence[Result], metric: str, settings: Sequence[str]) -> "Figure":
    """A panel for each setting."""
    from matplotlib.figure import Figure

    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, key in zip(panels, settings, strict=False):
        places, ticks, is_log = _axis(jobs, key)
        _points(axes, jobs, places, [job.metrics[metric] for job in jobs])
        axes.set(xlabel=key, ylabel=metric)
        if is_log:
            axes.set_xscale("log")
        if ticks:
            axes.set_xticks(range(len(ticks)), ticks)
    for axes in list(panels):
        axes.set_visible(False)
    return figure


def correlations(jobs: Sequence[Result], metric: str, settings: Sequence[str]) -> "Figure":
    """Spearman's, which asks for no straight line. Of given-up jobs the last value they came to counts."""
    from scipy.stats import rankdata

    figure, axes = _axes("correlation", f"Spearman's ρ with {metric}", "")
    ranks = rankdata([job.metrics[metric] for job in jobs])
    found = {key: float(np.corrcoef(rankdata([job.settings[key] for job in jobs]), ranks)[0, 1]) for key in settings}
    axes.barh(list(found), list(found.values()))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlim(-1, 1)
    return figure


def can_weigh() -> bool:
    """Whether scikit-learn, which comes with the extra `sweep`, is installed."""
    return importlib.util.find_spec("sklearn") is not None


def importance(jobs: Sequence[Result], metric: str, settings: Sequence[str]) -> "Figure":
    """How much worse a random forest predicts the objective of a job when one setting is shuffled, as a share of all settings' loss."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    figure, axes = _axes("importance", f"share of what is known of {metric}", "")
    values = np.array([job.metrics[metric] for job in jobs])
    places = np.array([_axis(jobs, key)[0] for key in settings]).T
    forest = RandomForestRegressor(200, random_state=0).fit(places, values)
    shuffled = permutation_importance(forest, places, values, n_repeats=20, random_state=0)
    found = np.maximum(np.asarray(dict(shuffled)["importances_mean"]), 0)
    order = np.argsort(found)
    axes.barh([settings[i] for i in order], found[order] / max(found.sum(), 1e-12))
    axes.set_xlim(0, 1)
    return figure


def parallel(jobs: Sequence[Result], metric: str, settings: Sequence[str]) -> "Figure":
    """A line for each job through its settings, each scaled to its range; the last axis is the objective."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = _axes("settings side by side", "", "")
    figure.set_size_inches(2 + 1.6 * (len(settings) + 1), 4)
    values = np.array([job.metrics[metric] for job in jobs])
    scaled, names = [], [*settings, metric]
    for place, key in enumerate(settings):
        numbers, ticks, is_log = _axis(jobs, key)
        at = np.log(numbers) if is_log else np.array(numbers, float)
        scaled.append(_unit(at))
        ends = [str(ticks[0]), str(ticks[-1])] if ticks else [f"{min(numbers):.3g}", f"{max(numbers):.3g}"]
        for height, text in zip((-0.06, 1.03), ends, strict=True):
            axes.text(place, height, text, ha="center", fontsize=8)
    scaled.append(_unit(values))
    for height, value in ((-0.06, values.min()), (1.03, values.max())):
        axes.text(len(settings), height, f"{value:.3g}", ha="center", fontsize=8)
    norm, colours = Normalize(values.min(), values.max()), colormaps["viridis"]
    for line, value in zip(np.array(scaled).T, values, strict=True):
        axes.plot(range(len(names)), line, color=colours(norm(value)), linewidth=1)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks([])
    axes.set_ylim(-0.1, 1.1)
    figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label=metric)
    return figure


def _points(axes: "Axes", jobs: Sequence[Result], x: Sequence[float], y: Sequence[float]) -> None:
    """Full for jobs that are complete, hollow for the others."""
    for is_complete, label in ((True, "complete"), (False, "given up or stopped")):
        chosen = [i for i, job in enumerate(jobs) if job.is_complete is is_complete]
        if chosen:
            face = "C0" if is_complete else "none"
            axes.scatter([x[i] for i in chosen], [y[i] for i in chosen], s=22, edgecolors="C0", facecolors=face, label=label)


def _axis(jobs: Sequence[Result], key: str) -> tuple[list[float], list[str], bool]:
    """Where jobs stand, the names of the places where they are no numbers, and whether the numbers are spread over powers of ten."""
    values = [job.settings.get(key) for job in jobs]
    if all(_is_number(value) for value in values):
        numbers = [float(value) for value in values]  # type: ignore[arg-type]
        return numbers, [], min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
    names = sorted({str(value) for value in values})
    return [float(names.index(str(value))) for value in values], names, False


def _unit(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread else np.full(len(values), 0.5)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has(job: Result, metric: str) -> bool:
    return math.isfinite(job.metrics.get(metric, math.nan))
