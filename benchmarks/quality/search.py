"""The weight of a penalty that leads to a wanted L0."""

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
Points = Sequence[tuple[float, float]]
"""(weight, L0) pairs."""
PILOTS, FULL_RUNS = 3, 4
PILOT_SHARE = 0.2
PILOT_TOLERANCE = 0.15
MOST = math.log(8)
"""Of a step in log weight."""


class Known(NamedTuple):
    """What other searches of this architecture found: weights with their L0, and how steep L0 falls there, nan where none says.

    `is_same`: those trainings differ from the ones to come in nothing but the weight.
    """

    points: tuple[tuple[float, float], ...] = ()
    steepness: float = math.nan
    is_same: bool = False


class Found(NamedTuple, Generic[T]):
    """The run nearest to the wanted L0, its weight, d log L0 / d log weight around it, and how many full runs there were."""

    result: T
    weight: float
    steepness: float
    full_runs: int


def search(
    run: Callable[[float, float], tuple[T, float]], wanted: float, start: float, tolerance: float, known: Known | None = None
) -> Found[T]:
    """Calls run(weight, share of the full length) → (result, L0) until a full one is within `tolerance` of `wanted`, FULL_RUNS times at most.

    log L0 is taken as a falling line in log weight: interpolated between two points that hold the target, extrapolated beyond them.
    Where nothing is known, short pilots from the weight `start` on find where to begin. How steep the line is, full runs alone say: it
    is steeper in short ones.
    """
    known = known or Known()
    pilots: list[tuple[float, float]] = []
    weight = start
    if known.points:
        weight = following(known.points, wanted, known.steepness)
    while not known.points and len(pilots) < PILOTS:
        _, l0 = run(weight, PILOT_SHARE)
        pilots.append((weight, l0))
        if abs(l0 / wanted - 1) <= PILOT_TOLERANCE:
            break
        weight = following(pilots, wanted)
    full: list[tuple[float, float]] = []
    results: list[T] = []
    steepness = slope(known.points, wanted, known.steepness)
    before = known.points if known.is_same else ()
    while True:
        result, l0 = run(weight, 1.0)
        full.append((weight, l0))
        results.append(result)
        steepness = slope([*before, *full], wanted, steepness)
        if abs(l0 / wanted - 1) <= tolerance or len(full) == FULL_RUNS:
            break
        weight = following([*before, *full], wanted, steepness)
    nearest = min(range(len(full)), key=lambda i: abs(_log(full[i][1], wanted)))
    return Found(results[nearest], full[nearest][0], steepness, len(full))


def following(points: Points, wanted: float, steepness: float = math.nan) -> float:
    """The weight to try next. `steepness`: of the line where the points do not say it."""
    weight, l0 = _nearest(points, wanted)[0]
    step = -_log(l0, wanted) / slope(points, wanted, steepness)
    return weight * math.exp(max(-MOST, min(MOST, step)))


def slope(points: Points, wanted: float, otherwise: float = math.nan) -> float:
    """d log L0 / d log weight between a point on each side of the target, or else between the two nearest ones.

    Where that is no fall, or there are no two points: `otherwise`; −1 where that is nan.
    """
    otherwise = -1.0 if math.isnan(otherwise) else otherwise
    nearest = _nearest(points, wanted)
    if len(nearest) < 2:
        return otherwise
    (weight, l0), others = nearest[0], nearest[1:]
    other = next((point for point in others if (point[1] > wanted) != (l0 > wanted)), others[0])
    if other[0] == weight:
        return otherwise
    found = (_log(other[1], wanted) - _log(l0, wanted)) / math.log(other[0] / weight)
    return max(-5.0, min(-0.2, found)) if found < 0 else otherwise


def _nearest(points: Points, wanted: float) -> list[tuple[float, float]]:
    return sorted(points, key=lambda point: abs(_log(point[1], wanted)))


def _log(l0: float, wanted: float) -> float:
    """log(L0 / wanted), finite."""
    return math.log(max(l0, 1e-3 * wanted) / wanted)
