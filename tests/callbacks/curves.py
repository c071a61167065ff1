"""What a run logged."""

import csv
from pathlib import Path


def curves(path: Path) -> dict[tuple[int, str], float]:
    """(step, metric) → value."""
    with path.open(newline="") as file:
        return {(int(step), metric): float(value) for step, metric, value in list(csv.reader(file))[1:]}
