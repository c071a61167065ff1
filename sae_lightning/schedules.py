"""A number over a run: a pure function of the step, so that a resumed run, and one that became longer, need to remember nothing."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from sae_lightning.errors import InputError

SHAPES = ("linear", "cosine", "stepwise")


@dataclass(frozen=True)
class Schedule:
    """From `start` to `end`; then it stays there.

        the first `warmup`      linear, from `floor` up to `start`
        then `hold`             `start`
        then `length`           from `start` to `end` (None: it stays at `start`): `linear`, `cosine` (half of one), or `stepwise`:
                                `levels` stretches of equal length, the first at `start`, the last at `end`; None: what is left
        or, with a `period`     from `start` to `end` and back in `period`, over and over

    Lengths are optimizer steps where they are whole numbers (6000), and shares of the run where they are fractions (0.05).
    Errors: InputError for a shape that is not there, lengths that are negative, shares above 1, fewer than 2 levels.
    """

    start: float
    end: float | None = None
    shape: str = "linear"
    warmup: float = 0
    floor: float = 0.0
    hold: float = 0
    length: float | None = None
    period: float | None = None
    levels: int = 10

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(f"shape is {self.shape!r}: choose one of {', '.join(SHAPES)}")
        for name in ("warmup", "hold", "length", "period"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and (isinstance(value, int) or value <= 1)):
                raise InputError(f"{name} is {value!r}: give a whole number of optimizer steps, or a share of the run as 0.05")
        if self.period is not None and (self.length is not None or self.period <= 0):
            raise InputError(f"period is {self.period} and length {self.length}: give one of them, above 0")
        if self.levels < 2:
            raise InputError(f"levels is {self.levels}: give a whole number of at least 2")

    @classmethod
    def of(cls, settings: Any) -> "Schedule":
        """From a configuration: {start: 64, end: 16, …}. Errors: InputError for keys that are not there, and a missing start."""
        known = [field.name for field in fields(cls)]
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(settings, Mapping) or not needed <= set(settings) <= set(known):
            raise InputError(f"it is {settings!r}: write {{start: …, end: …}}, and what else it needs of {', '.join(known[2:])}")
        for name, value in settings.items():
            may_be_null = name in ("end", "length", "period")
            if name != "shape" and not (_is_number(value) or (may_be_null and value is None)):
                raise InputError(f"{name} is {value!r}: give a number")
        return cls(**settings)

    def at(self, step: int, steps: int) -> float:
        """The value in optimizer step number `step` (the first is 1) of a run of `steps`."""
        warmup, hold = _steps(self.warmup, steps), _steps(self.hold, steps)
        if step < warmup:
            return self.floor + (self.start - self.floor) * step / warmup
        moved = step - warmup - hold
        if moved <= 0 or self.end is None:
            return self.start
        if self.period is not None:
            share = 1 - abs(2 * (moved / _steps(self.period, steps) % 1) - 1)
        else:
            length = steps - warmup - hold if self.length is None else _steps(self.length, steps)
            share = min(1.0, moved / length) if length > 0 else 1.0
        return self.start + (self.end - self.start) * self._moved(share)

    def extremes(self, steps: int) -> list[float]:
        """Values between which all others lie."""
        return [self.start, self.start if self.end is None else self.end, self.at(1, steps)]

    def _moved(self, share: float) -> float:
        if self.shape == "cosine":
            return (1 - math.cos(math.pi * share)) / 2
        if self.shape == "stepwise":
            return (math.ceil(self.levels * share - 1e-9) - 1) / (self.levels - 1) if share > 0 else 0.0
        return share


def _steps(length: float, steps: int) -> float:
    return length if isinstance(length, int) else length * steps


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
