import pytest
import torch

from sae_lightning.data.encoded import DTYPES, Encoded, encode, joined


def rows(n: int = 200, d: int = 48, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of very different size."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, d, generator=generator) * torch.logspace(-3, 3, n)[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_plain_numbers_are_rounded_once_and_have_no_scale(dtype):
    encoded = encode(rows(), dtype)
    assert encoded.scale is None
    assert encoded.values.dtype == DTYPES[dtype]
    torch.testing.assert_close(encoded.float(), rows().to(DTYPES[dtype]).float(), rtol=0, atol=0)


def test_int8_by_hand():
    # max|x| = 2.54: scale 0.02; 1.01 / 0.02 = 50.5 rounds to even
    encoded = encode(torch.tensor([[2.54, -1.0, 0.009, 0.011], [0.0, 0.0, 0.0, 0.0], [1.0, -127.0, 0.5, 63.4]]), "int8")
    torch.testing.assert_close(encoded.scale, torch.tensor([0.02, 0.0, 1.0]))
    assert encoded.values.tolist() == [[127, -50, 0, 1], [0, 0, 0, 0], [1, -127, 0, 63]]
    torch.testing.assert_close(encoded.float(), torch.tensor([[2.54, -1.0, 0.0, 0.02], [0.0, 0.0, 0.0, 0.0], [1.0, -127.0, 0.0, 63.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_entry_is_off_by_half_a_step_at_most(dtype):
    x = rows(dtype=dtype).float()
    encoded = encode(x.to(dtype), "int8")
    assert encoded.scale.dtype == torch.float32
    error = (encoded.float() - x).abs() / encoded.scale[:, None]
    assert error.max() <= 0.5 + 1e-4
    assert error.mean() == pytest.approx(0.25, abs=0.02)  # rounding to the nearest: uniform in ± ½
    torch.testing.assert_close(encoded.float().abs().amax(1), x.abs().amax(1))


def test_rows_of_any_size_stay_within_a_byte():
    x = torch.tensor([[1e-45, -1e-45], [1e-40, 3e-41], [3e38, -3e38], [-3e38, 0.0]])
    encoded = encode(x, "int8")
    assert encoded.values.abs().max() <= 127
    torch.testing.assert_close(encoded.float(), x, rtol=1e-2, atol=1e-43)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_shows_in_its_scale_only(bad):
    x = rows(3)
    x[1, 5] = bad
    assert encode(x, "int8").scale.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_of_the_rows_and_parts_joined(dtype):
    encoded = encode(rows(), dtype)
    for chosen in (slice(10, 20), torch.tensor([5, 3, 3, 199])):
        torch.testing.assert_close(encoded.at(chosen).float(), encoded.float()[chosen], rtol=0, atol=0)
    assert encoded.at(slice(10, 20)).values.data_ptr() == encoded.values[10:].data_ptr()
    torch.testing.assert_close(joined([encoded.at(slice(0, 7)), encoded.at(slice(7, 200))]).float(), encoded.float(), rtol=0, atol=0)
    assert joined([encoded]) is encoded


def test_nothing_is_something_that_can_be_encoded():
    empty = encode(torch.empty(0, 4), "int8")
    assert (empty.values.shape, empty.scale.shape, empty.float().shape) == ((0, 4), (0,), (0, 4))
    assert isinstance(joined([empty, empty]), Encoded)
