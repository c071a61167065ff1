"""Scores over L0: between two points, their Pareto front, what lies between two fronts, and differences paired over seeds."""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Point = tuple[float, float]
"""(L0, score), L0 > 0."""
Curve = Sequence[Point]
"""In any order."""
Piece = tuple[Point, Point]
"""Of a front: straight in log L0 from the first point to the second one."""
Rate = TypeVar("Rate")
CONFIDENCE = 0.95


class Paired(NamedTuple):
    """Of n differences: their mean, its standard error, and its two-sided 95 % interval (Student's t, n − 1 degrees of freedom).

    The last three are nan for n = 1.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    n: int


def at(curve: Curve, l0: float) -> float:
    """The score at an L0: on the straight line in log L0 between the neighbours below and above. Never extrapolated: nan outside.

    Points of the same L0 count as one, with their mean score.
    """
    points = _by_l0(curve)
    if not points or not points[0][0] <= l0 <= points[-1][0]:
        return math.nan
    above = next(i for i, point in enumerate(points) if point[0] >= l0)
    (high, score_high), (low, score_low) = points[above], points[max(above - 1, 0)]
    if high == l0:
        return score_high
    share = math.log(l0 / low) / math.log(high / low)
    return score_low + share * (score_high - score_low)


def front(curve: Curve, is_less_better: bool = False) -> list[Point]:
    """The points than which none has as few active latents and as good a score, by L0; between them, `at` interpolates.

    Where the points with the most active latents are dominated, the front goes on to their L0 with its best score: it was tried
    there, and nothing better was found.
    """
    sign, found = (-1 if is_less_better else 1), []
    for l0, score in sorted(curve, key=lambda point: (point[0], -sign * point[1])):
        if not found or sign * score > sign * found[-1][1]:
            found.append((l0, score))
    last = max((l0 for l0, _ in curve), default=0.0)
    return [*found, (last, found[-1][1])] if found and last > found[-1][0] else found


def joined(curves: Mapping[Rate, Mapping[int, Curve]], choose: Callable[[float], Rate | None]) -> dict[int, list[Piece]]:
    """One front for each seed out of those of several learning rates: between any two neighbouring L0 of all points, that of one rate.

    curves: by learning rate and seed. choose: the rate at an L0, asked for the middle of two neighbours in log L0; None: no piece.
    Where that leaves gaps, the front is the longest part without one.
    """
    knots = sorted({l0 for of_rate in curves.values() for curve in of_rate.values() for l0, _ in curve})
    found: dict[int, list[Piece]] = {seed: [] for of_rate in curves.values() for seed in of_rate}
    for low, high in itertools.pairwise(knots):
        rate = choose(math.sqrt(low * high))
        for seed, curve in curves[rate].items() if rate is not None else ():
            piece = (low, at(curve, low)), (high, at(curve, high))
            if not math.isnan(piece[0][1] + piece[1][1]):
                found[seed].append(piece)
    return {seed: _longest(pieces) for seed, pieces in found.items()}


def _longest(pieces: Sequence[Piece]) -> list[Piece]:
    """In log L0, of the parts in which each piece begins where the one before it ends."""
    parts: list[list[Piece]] = [[]]
    for piece in pieces:
        if parts[-1] and parts[-1][-1][1][0] != piece[0][0]:
            parts.append([])
        parts[-1].append(piece)
    return max(parts, key=lambda part: part[-1][1][0] / part[0][0][0] if part else 0.0)


def mean_over(pieces: Sequence[Piece], low: float, high: float) -> float:
    """∫ score d log L0 / (log high − log low) from low to high, exact; nan where the pieces leave some of that out.

    Errors: ValueError unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"a range of L0 goes from more than 0 to more than that: {low} to {high}")
    cut = [(max(low, piece[0][0]), min(high, piece[1][0]), piece) for piece in pieces]
    inside = [(math.log(right / left), at(piece, left) + at(piece, right)) for left, right, piece in cut if left < right]
    is_whole = math.isclose(sum(width for width, _ in inside), math.log(high / low), rel_tol=1e-9)
    return sum(width * both / 2 for width, both in inside) / math.log(high / low) if is_whole else math.nan


def common_range(fronts: Iterable[Sequence[Piece]]) -> tuple[float, float] | None:
    """The lowest and the highest L0 that all of them reach; None where that is no more than one L0."""
    fronts = list(fronts)
    if not fronts or not all(fronts):
        return None
    low, high = max(pieces[0][0][0] for pieces in fronts), min(pieces[-1][1][0] for pieces in fronts)
    return (low, high) if low < high else None


def paired(differences: Sequence[float]) -> Paired | None:
    """None where there are none."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return Paired(differences[0], math.nan, math.nan, math.nan, n) if n else None
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(n)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Paired(mean, error, mean - half, mean + half, n)


def _by_l0(curve: Curve) -> list[tuple[float, float]]:
    scores: dict[float, list[float]] = {}
    for l0, score in curve:
        scores.setdefault(l0, []).append(score)
    return [(l0, statistics.fmean(scores[l0])) for l0 in sorted(scores)]
