"""Known directions: what a row depends on, and that it is what it says."""

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.rows import generator
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError


def rows(**changes) -> SyntheticDataModule:
    return SyntheticDataModule(**({"d": 128, "n_directions": 512, "l0": 10, "batch_size": 100, "seed": 3} | changes))


def test_a_row_depends_on_its_index_and_the_seed_alone() -> None:
    one, other = rows(batch_size=100), rows(batch_size=250)
    assert_close(
        torch.cat([one.train_batch(i).x for i in range(25)]), torch.cat([other.train_batch(i).x for i in range(10)]), rtol=0, atol=0
    )
    assert_close(one.rows(1000, 60), one.rows(990, 100)[10:70], rtol=0, atol=0)  # across a chunk's end
    assert not torch.equal(rows(seed=4).train_batch(0).x, one.train_batch(0).x)


def test_training_validation_and_sample_share_no_row() -> None:
    data = rows(rows_held_out=300)
    seen = torch.cat([data.train_batch(0).x, data.sample(100, 0).x, data.sample(100, 1).x, *(batch.x for batch in data.held_out())])
    assert len(seen) == 600
    assert len(seen.unique(dim=0)) == 600


def test_rows_are_what_the_definition_says() -> None:
    data = rows(noise=0.0)
    clean = data.rows(0, 20_000)
    # Least squares on all directions is not unique at 512 > 128, so the signal is made again with the draws at hand.
    noisy = rows().rows(0, 20_000)
    variance = noisy.var(0).sum()
    assert_close(1 - (rows().noise_stds[0] ** 2 * 128) / variance, torch.tensor(0.990), atol=0.001, rtol=0)
    assert_close(data.directions.norm(dim=1), torch.ones(512))
    assert clean.isfinite().all()
    assert_close(data.scale[0][0], clean.square().sum(1).mean().sqrt(), rtol=0.03, atol=0)


def orthogonal(n: int, chunks: int, **changes) -> torch.Tensor:
    """Signals of directions that can be told apart: [rows, n], one column each."""
    data = rows(d=n, n_directions=n, noise=0.0, **changes)
    data.directions.copy_(torch.eye(n))
    return torch.cat([data._signals(generator(0, i))[0] for i in range(chunks)])


def test_how_many_directions_are_active() -> None:
    """Binomial(20, ½) draws with magnitudes about 1; of 2048 equally frequent directions one is seldom drawn twice."""
    x = orthogonal(2048, 6, zipf=0.0)
    count = (x > 0).sum(1).double()
    assert abs(float(count.mean()) - 10) < 0.1
    assert abs(float(count.var()) - 5) < 0.3
    assert abs(float(x[x > 0].mean()) - 1) < 0.02


def test_which_directions_are_active() -> None:
    often = (orthogonal(256, 20) > 0).double().mean(0)
    wanted = 1 / (torch.arange(1, 257) + 16)
    assert float(torch.corrcoef(torch.stack([often, wanted]))[0, 1]) > 0.98


def test_correlated_directions_come_in_pairs() -> None:
    def together(correlation: float) -> float:
        x = orthogonal(256, 10, correlation=correlation) > 0
        return float((x[:, 0::2] & x[:, 1::2]).sum() / x.sum())

    assert together(0.8) > 5 * together(0.0)


def test_a_pair_is_the_same_coefficients_in_two_spaces() -> None:
    """x does not change by there being a y; y's noise-free part is that of x's draws."""
    data, alone = rows(views="pair", d_out=48), rows()
    assert (data.shape, data.hooks) == (((128,), (48,)), (("",), ("",)))
    batch = data.train_batch(7)
    assert (batch.x.shape, batch.y.shape) == ((100, 128), (100, 48))
    assert_close(data.spaces[0], alone.directions)
    assert_close(data._signals(generator(1))[0], alone._signals(generator(1))[0], rtol=0, atol=0)
    data = rows(d=512, d_out=600, n_directions=512, views="pair")
    data.spaces[0].copy_(torch.eye(512))
    data.spaces[1].copy_(torch.eye(512, 600))
    x, y = data._signals(generator(1))
    assert_close(x, y[:, :512])
    assert_close(rows(views="pair", d_out=48).directions, rows(views="pair", d_out=48).spaces[1])


def test_a_stack_is_side_by_side_and_y_is_x() -> None:
    data = rows(views="stack", stacked=2, noise=0.0)
    assert data.shape == ((128, 128), (128, 128))
    batch = data.train_batch(0)
    assert batch.y is batch.x
    assert_close(data.directions, torch.cat(data.spaces, dim=1))
    assert float((data.spaces[0] * data.spaces[1]).sum(1).abs().max()) < 0.5
    coefficients = torch.linalg.lstsq(data.directions.T.double(), batch.x.T.double()).solution  # 256 numbers, 512 unknowns: not unique
    assert_close(data.directions.T.double() @ coefficients, batch.x.T.double(), rtol=1e-4, atol=1e-4)


def test_each_space_has_a_scale_and_noise_of_its_own() -> None:
    data = rows(views="pair", d_out=8, d=128)
    data.spaces[1].mul_(3)
    x, y = (scale.unique() for scale in data.scale)
    assert len(x) == len(y) == 1
    batch = data.sample(20_000, 5)
    assert_close((batch.x / x).square().sum(1).mean(), torch.tensor(1.0), rtol=0.03, atol=0)
    assert_close((batch.y / y).square().sum(1).mean(), torch.tensor(1.0), rtol=0.03, atol=0)
    assert data.noise_stds[1] > 6 * data.noise_stds[0]  # 3 times as long, in an eighth of the root of the width


@pytest.mark.parametrize(
    "wrong",
    [
        {"l0": 300},
        {"l0": 0},
        {"noise": -1.0},
        {"correlation": 2.0},
        {"rows_held_out": 0},
        {"batch_size": 0},
        {"scale": "big"},
        {"d_out": 0},
    ],
)
def test_what_cannot_be_is_refused(wrong) -> None:
    with pytest.raises(InputError, match=f"data.{next(iter(wrong))}"):
        rows(**wrong)
