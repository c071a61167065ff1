"""Statistics of the rows at a hook point, in float64."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class Statistics(NamedTuple):
    """Of all rows of a store at one hook point, training and validation rows together, as they are stored.

    `sum_of_squares` is Σ‖x‖². `median_norm` is that of the first 8192 rows (of all, where there are fewer): the norm
    that `norm > 10 × median` and `exclude_norm_above` refer to.
    """

    count: int
    mean: Float64[Tensor, " d"]
    sum_of_squares: float
    min_norm: float
    max_norm: float
    median_norm: float

    @property
    def mean_square_norm(self) -> float:
        """E‖x‖²."""
        return self.sum_of_squares / self.count


class Moments:
    """Sums over rows, in float64, that add up over shards."""

    def __init__(self, d: int):
        self.count = 0
        self.sum = torch.zeros(d, dtype=torch.float64)
        self.sum_of_squares = 0.0
        self.min_norm, self.max_norm = float("inf"), 0.0

    def update_(self, rows: Float[Tensor, "n d"], norms: Float64[Tensor, " n"]) -> None:
        """Adds rows whose norms are known."""
        if not len(rows):
            return
        self.count += len(rows)
        self.sum += rows.sum(0, dtype=torch.float64).cpu()
        square, low, high = torch.stack([norms.square().sum(), norms.min(), norms.max()]).tolist()
        self.sum_of_squares += square
        self.min_norm, self.max_norm = min(self.min_norm, low), max(self.max_norm, high)

    def merge_(self, other: "Moments") -> None:
        self.count += other.count
        self.sum += other.sum
        self.sum_of_squares += other.sum_of_squares
        self.min_norm, self.max_norm = min(self.min_norm, other.min_norm), max(self.max_norm, other.max_norm)

    def tensors(self, hook: str) -> dict[str, Tensor]:
        """As they are written into a shard."""
        numbers = torch.tensor([self.count, self.sum_of_squares, self.min_norm, self.max_norm], dtype=torch.float64)
        return dict(zip(moment_keys(hook), (self.sum, numbers), strict=True))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], hook: str) -> "Moments":
        moments = cls(0)
        moments.sum, numbers = (tensors[key] for key in moment_keys(hook))
        count, moments.sum_of_squares, moments.min_norm, moments.max_norm = numbers.tolist()
        moments.count = int(count)
        return moments


def moment_keys(hook: str) -> tuple[str, str]:
    """Names of the tensors of a shard that hold the sums of a hook point."""
    return f"moments.{hook}.sum", f"moments.{hook}.count_squares_min_max"


def statistics_tensors(hook: str, moments: Moments, median_norm: float) -> dict[str, Tensor]:
    """As they are written into statistics.safetensors."""
    numbers = {
        "count": moments.count,
        "sum_of_squares": moments.sum_of_squares,
        "min_norm": moments.min_norm,
        "max_norm": moments.max_norm,
        "median_norm": median_norm,
    }
    tensors = {f"{hook}.{name}": torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
    return tensors | {f"{hook}.mean": moments.sum / moments.count}


def statistics_from_tensors(hook: str, tensors: Mapping[str, Tensor]) -> Statistics:
    numbers = {name: tensors[f"{hook}.{name}"].item() for name in ("sum_of_squares", "min_norm", "max_norm", "median_norm")}
    return Statistics(count=int(tensors[f"{hook}.count"].item()), mean=tensors[f"{hook}.mean"], **numbers)
