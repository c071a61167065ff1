"""What the benchmark of several processes counts, and that every side of it takes steps."""

import pytest

from benchmarks import scale
from benchmarks.steps.ours import WORKS, Work
from tests.forks import forks


def test_collectives_that_overlap_are_counted_once() -> None:
    clock = scale.Clock()
    clock.flights = [(5.0, 6.0), (1.0, 3.0), (2.0, 2.5), (2.5, 4.0)]
    assert clock.seconds() == 4.0


@forks
@pytest.mark.usefixtures("unchecked")
def test_every_side_takes_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, "A", Work(16, 64, 32, 4))
    monkeypatch.setattr(scale, "CORES", 1)
    for name in ("all_reduce", "all_gather"):  # are put back
        monkeypatch.setattr(scale.dist, name, getattr(scale.dist, name))
    scale.Training(scale.Side(scale.ALONE, 1), 0, "topk", "A").turn(1)  # what torch imports at the first step is imported once
    sides = [scale.Side(scale.ALONE, 1), scale.Side("ddp", 2), scale.Side("shard_latents", 2)]
    found = scale.measure(sides, "topk", "A", steps=2, rounds=1)
    one, ddp, shards = (measured.turns for measured in found.values())
    assert one[0].in_collectives == 0
    assert 0 < ddp[0].in_collectives < ddp[0].seconds
    assert 0 < shards[0].in_collectives < shards[0].seconds
    assert ddp[0].mb == one[0].mb
    assert shards[0].mb == pytest.approx(one[0].mb / 2, rel=0.01)  # b_dec is everywhere
