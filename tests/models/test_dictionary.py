"""What every architecture shares: size, start, constraint, silence, revival."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary, geometric_median

SQUARE = Shape((4,), (4,))


@pytest.mark.parametrize(("factor", "d_sae", "wanted"), [(8, None, 32), (2.6, None, 10), (None, 7, 7)])
def test_its_size_is_said_once(factor: float | None, d_sae: int | None, wanted: int) -> None:
    assert Dictionary(SQUARE, factor, d_sae).d_sae == wanted


@pytest.mark.parametrize(("factor", "d_sae"), [(8, 32), (None, None), (0.0, None), (None, 0), (-1, None)])
def test_a_size_that_cannot_be_is_refused(factor: float | None, d_sae: int | None) -> None:
    with pytest.raises(InputError, match="expansion_factor"):
        Dictionary(SQUARE, factor, d_sae)


def test_it_starts_tied_with_rows_of_the_wanted_norm() -> None:
    d = Dictionary(SQUARE, d_sae=9, init_norm=0.1)
    assert_close(d.W_enc, d.W_dec)
    assert d.W_enc.data_ptr() != d.W_dec.data_ptr()
    assert_close(d.W_dec.norm(dim=1), torch.full((9,), 0.1))


def test_the_geometric_median_is_not_moved_by_far_rows() -> None:
    g = torch.Generator().manual_seed(0)
    near, far = torch.randn(200, 3, generator=g), 1000 + torch.randn(20, 3, generator=g)
    median = geometric_median(torch.cat([near, far]))
    assert median.norm() < 0.5
    y = torch.cat([near, far])
    cost = (y - median).norm(dim=1).sum()
    for axis in torch.eye(3):
        for size in (0.02, -0.02):
            assert (y - median - size * axis).norm(dim=1).sum() > cost


def test_the_geometric_median_of_three_points() -> None:
    """Of an equilateral triangle: its centre; of points on a line: the middle one, where the weight has a pole."""
    corners = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]])
    assert_close(geometric_median(corners), torch.zeros(2), atol=1e-5, rtol=0)
    assert_close(geometric_median(torch.tensor([[0.0], [1.0], [10.0]]), tolerance=1e-9, most=10_000), torch.ones(1), atol=1e-3, rtol=0)


@given(st.integers(0, 10_000))
def test_the_projection_is_idempotent_and_keeps_what_is_orthogonal(seed: int) -> None:
    torch.manual_seed(seed)
    d = Dictionary(SQUARE, d_sae=9)
    with torch.no_grad():
        d.W_dec.mul_(1.7)  # the projection must not rely on rows of norm 1
    gradient = torch.randn(9, 4)
    d.W_dec.grad = gradient.clone()
    d.before_step_()
    once = d.W_dec.grad.clone()
    assert_close((once * d.W_dec).sum(1), torch.zeros(9), atol=1e-5, rtol=0)
    parallel = gradient - once
    assert_close(
        parallel, (parallel * d.W_dec).sum(1, keepdim=True) / d.W_dec.square().sum(1, keepdim=True) * d.W_dec, atol=1e-5, rtol=1e-4
    )
    d.before_step_()
    assert_close(d.W_dec.grad, once, atol=1e-6, rtol=1e-5)


def test_unit_norm_is_of_rows_and_only_where_asked() -> None:
    for unit_norm in (True, False):
        d = Dictionary(SQUARE, d_sae=9, unit_norm=unit_norm)
        with torch.no_grad():
            d.W_dec.mul_(torch.linspace(0.5, 2, 9)[:, None])
        d.after_step_(torch.zeros(9, dtype=torch.int64), torch.tensor(1))
        assert_close(d.W_dec.norm(dim=1), torch.ones(9) if unit_norm else torch.linspace(0.5, 2, 9))


def test_silence_is_counted_in_rows_and_ends_with_a_firing() -> None:
    d = Dictionary(SQUARE, d_sae=3, dead_after=20)
    for fires in ([1, 0, 0], [0, 0, 1], [0, 0, 0]):
        d.after_step_(torch.tensor(fires), torch.tensor(10))
    assert d.rows_since_fired.tolist() == [20, 30, 10]
    assert d.dead.tolist() == [True, True, False]


@pytest.mark.parametrize(("rows", "batch", "wanted"), [(3_072_000, 1024, 153_600), (10_240, 1024, 20_480), (10**9, 4096, 10_000_000)])
def test_dead_after_fits_the_run(rows: int, batch: int, wanted: int) -> None:
    d = Dictionary(SQUARE, d_sae=3)
    d.begin_(rows, batch)
    assert int(d.dead_after) == wanted
    given = Dictionary(SQUARE, d_sae=3, dead_after=77)
    given.begin_(rows, batch)
    assert int(given.dead_after) == 77


def test_revival_points_latents_at_rows_and_leaves_the_living_alone() -> None:
    d = Dictionary(SQUARE, d_sae=4, dead_after=10)
    with torch.no_grad():
        d.W_enc.copy_(2 * d.W_enc)
    d.rows_since_fired.copy_(torch.tensor([0, 10, 3, 99]))
    before = {name: value.clone() for name, value in d.state_dict().items()}
    x, y = torch.tensor([[0.0, 3, 0, 4], [1, 0, 0, 0]]), torch.tensor([[5.0, 0, 0, 0], [0, 0, 2, 0]])
    d.revive_(torch.tensor([1, 3]), x, y)
    assert_close(d.W_enc[[1, 3]], 0.2 * 2 * torch.tensor([[0.0, 0.6, 0, 0.8], [1, 0, 0, 0]]))
    assert_close(d.W_dec[[1, 3]], torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]]))
    assert d.rows_since_fired.tolist() == [0, 0, 3, 0]
    for name, value in d.state_dict().items():
        if value.ndim and len(value) == 4 and name != "b_dec":
            assert_close(value[[0, 2]], before[name][[0, 2]], rtol=0, atol=0)


def test_revival_where_nothing_lives() -> None:
    d = Dictionary(SQUARE, d_sae=2, dead_after=1)
    d.rows_since_fired.fill_(5)
    d.revive_(torch.tensor([0, 1]), torch.eye(4)[:2], torch.eye(4)[:2])
    assert_close(d.W_enc.norm(dim=1), torch.full((2,), 0.2))
