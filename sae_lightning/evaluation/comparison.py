"""Architectures compared at the same L0, out of finished grid sweeps. The protocol is in sae_lightning/evaluation/matched.py."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sae_lightning.errors import InputError
from sae_lightning.evaluation.fronts import Paired, Piece, Point, at, common_range, front, joined, mean_over, paired
from sae_lightning.run.folder import NOT_OF_A_SWEEP
from sae_lightning.run.suggest import did_you_mean
from sae_lightning.sweeps.results import Result, Results

IS_L0 = ("k", "target_l0")
KNOBS = (*IS_L0, "usage", "sparsity")
"""Parameters of a model that say how sparse it is, the first two in active latents."""
SAME_TRAINING = (*NOT_OF_A_SWEEP, "evaluate", "name", "nulls", "sweep")
"""How words begin that say nothing of what was trained."""
MOST_NAMED = 5
Curves = dict[float, dict[int, list[Point]]]
"""(L0, number) points, by learning rate and seed."""


class Trained(NamedTuple):
    """A job. `architecture`: its model, with its other settings where those differ between jobs; `knob`: how sparse it was asked to be.

    `scored`, `validated`: the score, and the number that learning rates are chosen by, each with its L0; None where the job has none.
    """

    architecture: str
    lr: float
    knob: str
    seed: int
    state: str
    scored: Point | None
    validated: Point | None


class _Curves(NamedTuple):
    """Of an architecture. `is_less_chosen`: whether less of the validated number is better."""

    scored: Curves
    validated: Curves
    is_less_chosen: bool

    @classmethod
    def of(cls, jobs: Sequence[Trained], is_less_chosen: bool) -> "_Curves":
        return cls(_curves(jobs, lambda job: job.scored), _curves(jobs, lambda job: job.validated), is_less_chosen)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for of_rate in self.scored.values() for seed in of_rate})


class Matched(NamedTuple):
    """An architecture at an L0. `lr`: the chosen one (None: none reaches it), and at which `edge` of its grid; `scores`: by seed.

    `outside`: seeds whose curve does not reach this L0. `difference`: from the baseline; None for itself and where no seed has both.
    """

    l0: float
    architecture: str
    lr: float | None
    edge: str
    scores: dict[int, float]
    outside: list[int]
    difference: Paired | None


class Area(NamedTuple):
    """Between the fronts of an architecture and of the baseline, from L0 `low` to `high`, by seed. All None where they have no range in common."""

    architecture: str
    low: float | None
    high: float | None
    differences: dict[int, float]
    difference: Paired | None


class Comparison(NamedTuple):
    """`chosen_by`: the number that chose learning rates; `fronts`: by architecture and seed; `notes`: what a reader must know beside the numbers."""

    metric: str
    is_less_better: bool
    chosen_by: str
    jobs: list[Trained]
    fronts: dict[str, dict[int, list[Piece]]]
    matched: list[Matched]
    areas: list[Area]
    notes: list[str]

    @property
    def architectures(self) -> list[str]:
        """The baseline first."""
        return list(self.fronts)


def compare(sweeps: Sequence[Results], metric: str, is_less_better: bool, l0: Sequence[float] = ()) -> Comparison:
    """At each L0 of `l0`; without any, at those that knobs of the sweeps ask for.

    Errors: InputError where no job has the metric, where fewer than two architectures have one that does, and where two jobs are the same.
    """
    chosen_by = _chooses(sweeps, metric)
    jobs = list(trained(sweeps, metric, chosen_by))
    places = sorted(set(l0)) or _asked(sweeps)
    usable = [job for job in jobs if job.scored]
    names = [name for name in dict.fromkeys(job.architecture for job in jobs) if any(job.architecture == name for job in usable)]
    if jobs[0].architecture not in names:
        raise InputError(f"{jobs[0].architecture}, the first one, has no finished job with {metric}: there is nothing to compare with")
    if len(names) < 2:
        raise InputError(f"there is nothing to compare: only {names[0]} has a finished job with {metric}")
    _refuse_repeated(usable)
    is_less_chosen = is_less_better and chosen_by.removeprefix("val/") == metric.removeprefix("val/")
    curves = {name: _Curves.of([job for job in usable if job.architecture == name], is_less_chosen) for name in names}
    at_l0 = [one for place in places for one in _matched(curves, place)]
    fronts = {name: _front(of, is_less_better) for name, of in curves.items()}
    areas = [_area(name, fronts[name], fronts[names[0]]) for name in names[1:]]
    notes = [*_of_jobs(jobs), *_of_rates(usable, names, at_l0), *_of_places(usable, at_l0, areas)]
    return Comparison(metric, is_less_better, chosen_by, jobs, fronts, at_l0, areas, notes)


# -- jobs ---------------------------------------------------------------------------------------------------------------


def trained(sweeps: Sequence[Results], metric: str, chosen_by: str) -> Iterator[Trained]:
    """The jobs of all sweeps."""
    every = [(job, sweep.common | job.settings) for sweep in sweeps for job in sweep.jobs]
    others = _telling([settings for _, settings in every])
    for job, settings in every:
        if isinstance(settings.get("optimizer.lr"), bool | str | None) or not isinstance(settings.get("seed"), int):
            raise InputError(f"{job.folder} does not say with which learning rate and seed it was trained")
        knob = " ".join(f"{key.removeprefix('model.')}={settings[key]}" for key in settings if _is_knob(key))
        name = " ".join([str(settings.get("model")), *(f"{key}={settings[key]}" for key in others if key in settings)])
        scored, validated = (_point(job, number) if job.is_complete else None for number in (metric, chosen_by))
        state = job.status if scored or not job.is_complete else f"no finite {metric} at a positive L0"
        yield Trained(name, float(settings["optimizer.lr"]), knob, int(settings["seed"]), state, scored, validated)


def _telling(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings beside model, knob, learning rate and seed that tell jobs apart: of a model, those that its own jobs differ in."""

    def differ(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
        return len({repr(one.get(key)) for one in settings}) > 1

    found = []
    for key in dict.fromkeys(key for settings in every for key in settings):
        if key in ("model", "seed", "optimizer.lr") or _is_knob(key) or key.lstrip("+~").startswith(SAME_TRAINING):
            continue
        models = {settings.get("model") for settings in every}
        groups = [[s for s in every if s.get("model") == model] for model in models] if key.startswith("model") else [every]
        if any(differ(key, group) for group in groups):
            found.append(key)
    return found


def _is_knob(key: str) -> bool:
    return key.startswith("model.") and key.removeprefix("model.") in KNOBS


def _point(job: Result, number: str) -> Point | None:
    names = ("val/l0", "l0") if number.startswith("val/") else ("l0", "val/l0")
    l0, value = next((job.metrics[name] for name in names if name in job.metrics), math.nan), job.metrics.get(number, math.nan)
    return (l0, value) if l0 > 0 and math.isfinite(l0) and math.isfinite(value) else None


def _chooses(sweeps: Sequence[Results], metric: str) -> str:
    """The metric of the last validation where there is one, or else its explained variance. Errors: InputError where none has the metric."""
    names = {name for sweep in sweeps for job in sweep.jobs if job.is_complete for name in job.metrics}
    if not names:
        raise InputError("no job of these sweeps is finished")
    if metric not in names:
        raise InputError(f"metric={metric}: no finished job has such a number{did_you_mean(metric, names)}")
    return next((name for name in (f"val/{metric.removeprefix('val/')}", "val/explained_variance") if name in names), metric)


def _asked(sweeps: Sequence[Results]) -> list[float]:
    settings = [sweep.common | job.settings for sweep in sweeps for job in sweep.jobs]
    found = {one[key] for one in settings for key in one if _is_knob(key) and key.removeprefix("model.") in IS_L0}
    if not found:
        raise InputError("these sweeps have no knob that is an L0: say where to compare, l0=8,16,32")
    return sorted(float(value) for value in found)


def _refuse_repeated(jobs: Sequence[Trained]) -> None:
    seen = set()
    for job in jobs:
        if job[:4] in seen:
            raise InputError(f"there are two of {_named(job)}: leave one of their sweeps out")
        seen.add(job[:4])


def _named(job: Trained) -> str:
    return f"{job.architecture} {job.knob} lr {job.lr:g} seed {job.seed}".replace("  ", " ")


# -- the protocol -------------------------------------------------------------------------------------------------------


def _curves(jobs: Iterable[Trained], point: Callable[[Trained], Point | None]) -> Curves:
    """The points of an architecture's jobs, by learning rate, ascending, and seed."""
    found: Curves = {}
    for job in sorted(jobs, key=lambda job: (job.lr, job.seed)):
        of_seed = found.setdefault(job.lr, {}).setdefault(job.seed, [])
        of_seed.extend([at_l0] if (at_l0 := point(job)) else [])
    return found


def _rate(validated: Curves, l0: float, is_less: bool) -> float | None:
    """That with the best mean over seeds at this L0, among those that most seeds have a number for; the only one of a grid of one."""
    if len(validated) == 1:
        return next(iter(validated))
    found = {lr: [value for curve in curves.values() if not math.isnan(value := at(curve, l0))] for lr, curves in validated.items()}
    sign, found = (-1 if is_less else 1), {lr: values for lr, values in found.items() if values}
    return max(found, key=lambda lr: (len(found[lr]), sign * statistics.fmean(found[lr])), default=None)


def _matched(of: Mapping[str, _Curves], l0: float) -> Iterator[Matched]:
    baseline: dict[int, float] | None = None
    for name, curves in of.items():
        rates = list(curves.scored)
        lr = _rate(curves.validated, l0, curves.is_less_chosen)
        scores = {} if lr is None else {seed: value for seed, c in curves.scored[lr].items() if not math.isnan(value := at(c, l0))}
        edge = "" if lr not in (rates[0], rates[-1]) or len(rates) == 1 else "lowest" if lr == rates[0] else "highest"
        seeds = curves.seeds if lr is None else sorted(curves.scored[lr])
        difference = None if baseline is None else paired([scores[seed] - baseline[seed] for seed in scores if seed in baseline])
        yield Matched(l0, name, lr, edge, scores, [seed for seed in seeds if seed not in scores], difference)
        baseline = scores if baseline is None else baseline


def _front(curves: _Curves, is_less: bool) -> dict[int, list[Piece]]:
    """By seed."""
    validated, scored = (
        {lr: {seed: front(curve, less) for seed, curve in of_rate.items() if len(dict(curve)) > 1} for lr, of_rate in of.items()}
        for of, less in ((curves.validated, curves.is_less_chosen), (curves.scored, is_less))
    )

    def choose(l0: float) -> float | None:
        reached = [{math.isnan(at(curve, l0)) for curve in of_rate.values()} for of in (validated, scored) for of_rate in of.values()]
        return _rate(validated, l0, curves.is_less_chosen) if all(len(one) < 2 for one in reached) else None

    return joined(scored, choose)


def _area(name: str, ours: Mapping[int, Sequence[Piece]], baseline: Mapping[int, Sequence[Piece]]) -> Area:
    seeds = [seed for seed in ours if seed in baseline and common_range([ours[seed], baseline[seed]])]
    shared = common_range([fronts[seed] for fronts in (ours, baseline) for seed in seeds])
    if shared is None:
        return Area(name, None, None, {}, None)
    differences = {seed: mean_over(ours[seed], *shared) - mean_over(baseline[seed], *shared) for seed in seeds}
    differences = {seed: value for seed, value in differences.items() if not math.isnan(value)}
    return Area(name, *shared, differences, paired(list(differences.values())))


# -- what a reader must know --------------------------------------------------------------------------------------------


def _of_jobs(jobs: Sequence[Trained]) -> Iterator[str]:
    """What is not there of every knob × learning rate × seed."""
    seeds = sorted({job.seed for job in jobs})
    for name in dict.fromkeys(job.architecture for job in jobs):
        mine = [job for job in jobs if job.architecture == name]
        rates, knobs = (dict.fromkeys(values) for values in zip(*((job.lr, job.knob) for job in mine), strict=True))
        wanted = [Trained(name, lr, knob, seed, "missing", None, None) for knob in knobs for lr in rates for seed in seeds]
        good = {job[:4] for job in mine if job.scored}
        states = {job[:4]: job.state for job in mine}
        absent = [f"{_named(job)} ({states.get(job[:4], job.state)})" for job in wanted if job[:4] not in good]
        if absent:
            more = f" and {len(absent) - MOST_NAMED} more" if len(absent) > MOST_NAMED else ""
            yield f"{len(absent)} of {len(wanted)} trainings of {name} do not count: {', '.join(absent[:MOST_NAMED])}{more}"
    if len(seeds) == 1:
        yield "there is one seed: differences have no interval"


def _of_rates(jobs: Sequence[Trained], names: Sequence[str], at_l0: Sequence[Matched]) -> Iterator[str]:
    for name in names:
        rates = sorted({job.lr for job in jobs if job.architecture == name})
        if len(rates) == 1:
            yield f"{name} has one learning rate, {rates[0]:g}: it is not tuned"
        for edge, lr in (("lowest", rates[0]), ("highest", rates[-1])):
            places = [f"{one.l0:g}" for one in at_l0 if one.architecture == name and one.edge == edge]
            if places:
                yield f"the best learning rate of {name} is the {edge} of its grid, {lr:g}, at L0 {', '.join(places)}: a wider grid may do better"


def _of_places(jobs: Sequence[Trained], at_l0: Sequence[Matched], areas: Sequence[Area]) -> Iterator[str]:
    for name in dict.fromkeys(one.architecture for one in at_l0 if one.outside):
        places = [(f"{one.l0:g}", ", ".join(map(str, one.outside))) for one in at_l0 if one.architecture == name and one.outside]
        found = [job.scored[0] for job in jobs if job.architecture == name and job.scored]
        said = ", ".join(f"L0 {l0} (seed {seeds})" for l0, seeds in places)
        yield f"{name} does not reach {said}: it has L0 {min(found):.4g} to {max(found):.4g}, and nothing is extrapolated"
    for area in areas:
        if area.difference is None:
            yield f"the fronts of {area.architecture} and the baseline have no range of L0 in common"
