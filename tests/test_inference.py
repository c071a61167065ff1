"""Export, loading, folding; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae

D, F = 4, 12


def any_sae(k: int | None = None, skip: bool = False, subtract: bool = True, cap: float | None = None) -> InferenceSAE:
    g = torch.Generator().manual_seed(0)
    weights = {"W_enc": torch.randn(F, D, generator=g), "W_dec": torch.randn(F, D, generator=g),
               "b_enc": torch.randn(F, generator=g), "b_dec": torch.randn(D, generator=g)}  # fmt: skip
    if k is None:
        weights["threshold"] = torch.rand(F, generator=g)
    if skip:
        weights["W_skip"] = torch.randn(D, D, generator=g)
    return InferenceSAE(weights, subtract=subtract, k=k, cap=cap, about={"architecture": "test"})


KINDS = {"threshold": {}, "k": {"k": 3}, "skip": {"skip": True}, "not centred": {"subtract": False}, "capped": {"cap": 0.5}}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_bit_for_bit(kind: str, tmp_path: Path) -> None:
    sae, x = any_sae(**KINDS[kind]), torch.randn(50, D)
    loaded = load_sae(sae.save(tmp_path / "sae", {"hook": "model.layers.1"}))
    assert_close(loaded(x), sae(x), rtol=0, atol=0)
    assert_close(loaded.encode(x).dense(), sae.encode(x).dense(), rtol=0, atol=0)
    assert loaded.about == {"architecture": "test", "hook": "model.layers.1"}
    assert_close(load_sae(tmp_path)(x), sae(x), rtol=0, atol=0)  # the run's folder will do


@pytest.mark.parametrize("kind", KINDS)
def test_folding_a_scale_gives_the_same_function_of_raw_rows(kind: str) -> None:
    sae, x, s = any_sae(**KINDS[kind]), torch.randn(50, D), 7.3
    folded = sae.rescaled(torch.full((D,), s), torch.full((D,), s))
    assert_close(folded(s * x), s * sae(x), rtol=1e-5, atol=1e-5)
    assert_close(folded.encode(s * x).dense(), s * sae.encode(x).dense(), rtol=1e-5, atol=1e-5)
    assert_close((folded.W_enc, folded.W_dec), (sae.W_enc, sae.W_dec))
    assert sae.rescale_(torch.full((D,), s), torch.full((D,), s)) is sae
    assert_close(dict(sae.named_buffers()), dict(folded.named_buffers()), rtol=0, atol=0)
    assert sae.cap == folded.cap


def test_folding_two_scales_gives_the_same_function_of_raw_rows() -> None:
    sae, x = any_sae(skip=True, subtract=False), torch.randn(50, D)
    s_in, s_out = torch.tensor([2.0, 2, 5, 5]), torch.tensor([3.0, 3, 3, 0.5])
    folded = sae.rescaled(s_in, s_out, torch.tensor(2.0))
    assert_close(folded(s_in * x), s_out * sae(x), rtol=1e-5, atol=1e-5)
    assert_close(folded.encode(s_in * x).dense(), 2 * sae.encode(x).dense(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_on_its_own(kind: str) -> None:
    sae, x = any_sae(**KINDS[kind]), torch.randn(20, D)
    assert_close(sae(x), torch.cat([sae(row[None]) for row in x]), rtol=1e-5, atol=1e-5)


def _without(name: str):
    def change(folder: Path) -> None:
        weights = load_file(folder / "sae.safetensors")
        del weights[name]
        save_file(weights, folder / "sae.safetensors")

    return change


def _transposed(folder: Path) -> None:
    weights = load_file(folder / "sae.safetensors")
    save_file(weights | {"W_enc": weights["W_enc"].T.contiguous()}, folder / "sae.safetensors")


def _described(**changes):
    def change(folder: Path) -> None:
        description = json.loads((folder / "sae.json").read_text()) | changes
        (folder / "sae.json").write_text(json.dumps(description))

    return change


def _cut(folder: Path) -> None:
    data = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "sae.json").unlink(), "holds no exported SAE"),
        (lambda folder: (folder / "sae.json").write_text("{"), "sae.json cannot be read"),
        (_described(format="sae_lightning/99"), "of format 'sae_lightning/99'"),
        (_described(d_sae=13), "has shape"),
        (_described(k=2**40), "says k 1099511627776, and there are"),
        (_described(k=True), "says k True"),
        (_transposed, "W_enc has shape"),
        (_without("W_dec"), "holds no W_dec"),
        (_without("threshold"), "neither k nor a threshold"),
        (_cut, "sae.safetensors cannot be read"),
        (lambda folder: (folder / "sae.safetensors").unlink(), "sae.safetensors cannot be read"),
    ],
)
def test_a_damaged_export_is_refused_in_one_line(damage, says: str, tmp_path: Path) -> None:
    folder = any_sae().save(tmp_path / "sae")
    damage(folder)
    with pytest.raises(InputError, match=says) as error:
        load_sae(folder)
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_sae(tmp_path / "nothing")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (2, 5), (2, 3, 4)])
def test_rows_may_stand_in_any_number_of_axes(kind: str, leading: tuple[int, ...]) -> None:
    sae, x = any_sae(**KINDS[kind]), torch.randn(*leading, D)
    rows = x.reshape(-1, D)
    latents, flat = sae.encode(x), sae.encode(rows)
    assert_close(sae(x), sae(rows).view(*leading, D))
    assert_close(latents.dense(), flat.dense().view(*leading, F))
    assert_close(latents.l0_per_row(), flat.l0_per_row().view(leading))
    assert_close(latents.fires(), flat.fires())
    assert_close(latents.active(), flat.active())
    assert_close(sae.decode(latents), sae.decode(flat).view(*leading, D))
    assert_close(sae.decode(latents.dense()), sae.decode(flat).view(*leading, D), rtol=1e-5, atol=1e-5)


def test_rows_of_another_width_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="rows have width 5, and this SAE reads rows of width 4"):
        any_sae()(torch.randn(2, 3, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_are_fixed_have_their_value_in_every_row(kind: str) -> None:
    sae, x = any_sae(**KINDS[kind]), torch.randn(3, 5, D)
    f = sae.encode(x)
    by_hand = f.dense().clone()
    by_hand[..., 2], by_hand[..., 7] = 0.0, 1.5
    expected = sae.decode(by_hand) + (sae(x) - sae.decode(f))  # and what W_skip adds
    assert_close(sae.reconstruct(x, f, sae.fix({2: 0.0, 7: 1.5})), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="there is no latent 12: this SAE has 12, choose among 0 to 11"):
        sae.fix({3: 1.0, F: 1.0})


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_float32_to_its_rounding_and_rows_keep_their_type(kind: str) -> None:
    g = torch.Generator().manual_seed(0)
    sae, low, x = any_sae(**KINDS[kind]), any_sae(**KINDS[kind]).to(torch.bfloat16), torch.randn(400, D, generator=g)
    for weights in (sae, low):
        for given in (torch.bfloat16, torch.float32, torch.float64):
            assert weights(x.to(given)).dtype == given
            assert weights.encode(x.to(given)).dense().dtype == weights.W_enc.dtype
    exact, rounded = sae.encode(x).dense(), low.encode(x).dense().float()
    # h is a sum of terms up to about 10, each to 2⁻⁸; what differs by more has crossed a threshold
    near = (exact - rounded).abs() <= 0.15
    assert near.float().mean() > 0.98
    assert ((exact[~near] == 0) | (rounded[~near] == 0)).all()
    whole = near.all(1)
    assert whole.sum() > 300
    assert_close(low(x)[whole], sae(x)[whole], rtol=0.02, atol=0.2)


def test_a_float32_sae_computes_bfloat16_rows_in_float32_and_a_float64_one_in_float64() -> None:
    sae, x = any_sae(), torch.randn(50, D)
    assert_close(sae(x.bfloat16()), sae(x.bfloat16().float()).bfloat16(), rtol=0, atol=0)
    double = any_sae().double()
    h = (x.double() - double.b_dec) @ double.W_enc.T + double.b_enc
    expected = (h * (h > double.get_buffer("threshold"))) @ double.W_dec + double.b_dec
    assert_close(double(x.double()), expected, rtol=1e-12, atol=1e-12)
