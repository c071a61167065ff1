"""Values worked out by hand, in optimizer steps 1 … N."""

import math

import pytest

from sae_lightning.errors import InputError
from sae_lightning.schedules import Schedule


def values(settings: dict, steps: int) -> list[float]:
    schedule = Schedule.of(settings)
    return [schedule.at(step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"start": 8, "end": 4}, [7, 6, 5, 4]),
        ({"start": 3}, [3, 3, 3, 3]),
        ({"start": 3, "warmup": 2}, [1.5, 3, 3, 3]),
        ({"start": 3, "warmup": 0.5, "floor": 1}, [2, 3, 3, 3]),  # half of 4 steps
        ({"start": 8, "end": 4, "length": 2}, [6, 4, 4, 4]),
        ({"start": 8, "end": 4, "hold": 2}, [8, 8, 6, 4]),
        ({"start": 8, "end": 4, "warmup": 1, "hold": 1, "floor": 2}, [8, 8, 6, 4]),
        ({"start": 8, "end": 4, "shape": "stepwise", "levels": 2}, [8, 8, 4, 4]),
        ({"start": 9, "end": 3, "shape": "stepwise", "levels": 4}, [9, 7, 5, 3]),
        ({"start": 1, "end": 0, "shape": "cosine"}, [0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),  # (1 + cos 45°)/2, …
        ({"start": 1, "end": 0, "period": 4}, [0.5, 0, 0.5, 1]),
    ],
)
def test_by_hand(settings: dict, wanted: list[float]) -> None:
    assert values(settings, 4) == pytest.approx(wanted)


def test_the_last_step_is_at_the_end_whatever_the_length() -> None:
    for shape in ("linear", "cosine", "stepwise"):
        for steps in (1, 7, 3000):
            assert Schedule(64, 16, shape, warmup=0.05).at(steps, steps) == pytest.approx(16)


def test_stretches_are_equally_long() -> None:
    found = values({"start": 64, "end": 16, "shape": "stepwise", "levels": 4}, 3000)
    assert [found.count(value) for value in (64, 48, 32, 16)] == [750] * 4


def test_the_coefficient_of_splatnlp() -> None:
    """6000 steps from 0.05 up to 1.5, then down in 30 000 and up again in as many, as the splatnlp SAE does, whatever the length of the run."""
    kappa = Schedule(1.5, 0.05, "cosine", warmup=6000, floor=0.05, period=60_000)
    for t in (1, 3000, 6000, 10_000, 36_000, 50_000, 66_000, 100_000):
        wanted = 0.05 + 1.45 * (t / 6000 if t < 6000 else (1 + math.cos(2 * math.pi * (t - 6000) / 60_000)) / 2)
        assert kappa.at(t, 200_000) == kappa.at(t, 100_000) == pytest.approx(wanted)
    assert kappa.at(36_000, 100_000) == pytest.approx(0.05)


def test_all_values_lie_between_the_extremes() -> None:
    for settings in (
        {"start": 5, "end": 9, "warmup": 10, "floor": 2},
        {"start": 5, "end": 1, "shape": "cosine", "period": 13, "floor": 3, "warmup": 4},
    ):
        found, extremes = values(settings, 50), Schedule.of(settings).extremes(50)
        assert min(extremes) <= min(found)
        assert max(found) <= max(extremes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": 1, "stop": 2}, "write {start: …, end: …}"),
        ({"end": 1}, "write {start: …, end: …}"),
        (3, "write {start: …, end: …}"),
        ({"start": "a"}, "start is 'a'"),
        ({"start": 1, "end": math.nan}, "end is nan"),
        ({"start": 1, "end": True}, "end is True"),
        ({"start": 1, "shape": "exponential"}, "choose one of linear, cosine, stepwise"),
        ({"start": 1, "warmup": -1}, "warmup is -1"),
        ({"start": 1, "warmup": 6000.0}, "whole number of optimizer steps, or a share"),
        ({"start": 1, "end": 2, "period": 10, "length": 10}, "give one of them"),
        ({"start": 1, "levels": 1}, "levels is 1"),
    ],
)
def test_what_cannot_be_is_refused(settings: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Schedule.of(settings)
