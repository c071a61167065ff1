"""What the benchmark of checkpoints weighs."""

from pathlib import Path

import pytest

from benchmarks import checkpoint


@pytest.mark.usefixtures("unchecked")
def test_every_side_is_weighed(tmp_path: Path) -> None:
    """2048 latents of d 256: two matrices, each with two moments; the export has the matrices alone."""
    found = {name: costs[0] for name, costs in checkpoint.costs(tmp_path, 2048, 256, rounds=1).items()}
    assert set(found) == {*checkpoint.BESIDE, *(other for others in checkpoint.BESIDE.values() for other in others)}
    assert found["write"].mb == pytest.approx(24 * 2048 * 256 / 1e6, rel=0.02)
    assert found["export"].mb == pytest.approx(8 * 2048 * 256 / 1e6, rel=0.02)
    assert all(cost.seconds > 0 for cost in found.values())
    assert not (tmp_path / "plain").exists()
