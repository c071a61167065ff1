"""Calibration, and what cannot be."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.calibration import upper_quantile
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian


def on_noise(target: float, d: int = 16, d_sae: int = 128) -> Lagrangian:
    return Lagrangian(partial(Dictionary, Shape((d,), (d,)), d_sae=d_sae), target)


@pytest.mark.parametrize("target", [2.0, 8.0, 32.0])
def test_the_calibrated_l0_is_right_on_new_rows(target: float) -> None:
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    sae = on_noise(target)
    assert sae.calibration_rows() == 32 * 128 / target
    sae.calibrate_(torch.randn(65536, 16, generator=g))  # what the module gives it at least
    fresh = torch.randn(20_000, 16, generator=g)
    l0 = sae.step(fresh, fresh).latents.l0_per_row().double().mean()
    assert abs(float(l0) / target - 1) < 0.03
    assert_close(sae.width, 0.5 * sae.dictionary.encode(fresh).h.square().mean().sqrt(), rtol=0.05, atol=0)


def test_the_quantile_is_the_expected_one() -> None:
    """Of 99 numbers a new one exceeds the largest with probability 1/100; between order statistics it is interpolated."""
    h = torch.arange(1.0, 100.0)[torch.randperm(99)][:, None]
    assert_close(upper_quantile(h, 0.01), torch.tensor([99.0]))
    assert_close(upper_quantile(h, 0.10), torch.tensor([90.0]))
    assert_close(upper_quantile(h, 0.105), torch.tensor([89.5]))
    assert_close(upper_quantile(h, 1e-6), torch.tensor([99.0]))


def test_blocks_of_latents_are_calibrated_like_all_at_once() -> None:
    sae = on_noise(8.0)
    x = torch.randn(512, 16)
    sae.calibrate_(x)
    assert_close(sae.threshold, upper_quantile(sae.dictionary.encode(x).h, 8 / 128).clamp(min=0))


def test_thresholds_stay_non_negative_and_revived_ones_are_typical() -> None:
    sae = on_noise(8.0)
    with torch.no_grad():
        sae.threshold.copy_(torch.linspace(-1, 1, 128))
    sae.after_step_({"fires": torch.ones(128, dtype=torch.int64), "rows": torch.tensor(16)})
    assert sae.threshold.min() == 0
    alive = torch.arange(128) >= 100
    sae.after_revival_(torch.tensor([3, 5]), alive)
    assert_close(sae.threshold[[3, 5]], sae.threshold[alive].median().expand(2))


@pytest.mark.parametrize(
    "wrong",
    [{"target_l0": 128}, {"target_l0": 0}, {"target_l0": -3}, {"rho": -1.0}, {"dual_rate": -1.0}, {"bandwidth": 0.0}, {"momentum": 1.0}],
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"model.{next(iter(wrong))}"):
        Lagrangian(partial(Dictionary, Shape((4,), (4,)), d_sae=128), **{"target_l0": 4, **wrong})
