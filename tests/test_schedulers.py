import pytest
import torch
from torch.testing import assert_close

from sae_lightning import schedulers
from sae_lightning.errors import InputError


def curve(make, steps: int = 100, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = make(optimizer, steps, **settings)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_warms_up_from_above_zero() -> None:
    rates = curve(schedulers.constant, warmup=0.1)
    assert_close(rates[:11], [2 * (i + 1) / 11 for i in range(11)])
    assert set(rates[10:]) == {2.0}


def test_linear_falls_over_the_last_share() -> None:
    rates = curve(schedulers.linear, warmup=0.0, decay=0.2, final=0.5)
    assert set(rates[:81]) == {2.0}
    assert_close(rates[90], 1.5)
    assert_close(rates[99], 2 - 19 / 20)


def test_cosine_ends_at_its_share() -> None:
    rates = curve(schedulers.cosine, warmup=0.0, final=0.1)
    assert_close(rates[50], 2 * 0.55)
    assert rates[-1] == pytest.approx(0.2, abs=0.01)
    assert rates == sorted(rates, reverse=True)


def test_shares_that_overlap_are_refused() -> None:
    with pytest.raises(InputError, match="shares of the run"):
        curve(schedulers.linear, warmup=0.6, decay=0.6)
