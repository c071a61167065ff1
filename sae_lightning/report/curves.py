"""What a run logged, as curves."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 600
"""Of a curve, at most."""


def read(path: Path) -> dict[str, dict[int, float]]:
    """Of each number in a metrics.csv its finite values by step; {} where there is no such file."""
    found: dict[str, dict[int, float]] = {}
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                if line["value"] and np.isfinite(float(line["value"])):
                    found.setdefault(line["metric"], {})[int(line["step"])] = float(line["value"])
    return found


def thinned(curve: Mapping[int, float], points: int = POINTS) -> dict[str, Any]:
    """`steps` and `values` of a curve, of more than `points` points so many, its first and last one among them."""
    steps = sorted(curve)
    kept = steps if len(steps) <= points else [steps[i] for i in np.linspace(0, len(steps) - 1, points).round().astype(int)]
    return {"steps": kept, "values": [float(f"{curve[step]:.6g}") for step in kept]}
