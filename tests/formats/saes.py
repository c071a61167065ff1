"""What every architecture of conf/model exports, as an autoencoder and otherwise; and how two of them are compared."""

from functools import cache, partial

import torch
from torch import Tensor
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.crosscoder import crosscoder
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.transcoder import transcoder
from tests.architectures import ALL, MODELS, fitting, settings
from tests.models.build import Kind

D, D_OUT, F, ROWS = 8, 6, 32, 24
KINDS = {
    "autoencoder": Kind(Dictionary, Shape((D,), (D,))),
    "transcoder": Kind(transcoder, Shape((D,), (D,))),
    "transcoder, other width": Kind(transcoder, Shape((D,), (D_OUT,))),
    "transcoder, skip": Kind(partial(transcoder, skip=True), Shape((D,), (D,))),
    "crosscoder": Kind(crosscoder, Shape((D // 2, D // 2), (D // 2, D // 2))),
}
EXPORTS = [(model, kind) for model in ALL for kind in (KINDS if model in MODELS else ["autoencoder"])]
"""Null models are autoencoders only."""
VIEWS = {"autoencoder": "one", "crosscoder": "stack"}
SCALE = 3.7


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    """In raw space: not centred, and not of length 1."""
    g = torch.Generator().manual_seed(5)
    return (SCALE * (torch.randn(ROWS, D, generator=g) + 0.5)).to(dtype)


@cache
def exported(model: str, kind: str) -> InferenceSAE:
    """In raw space, float32, nothing at its initial value, with what an export says of it."""
    torch.manual_seed(1)
    made, shape = KINDS[kind]
    sae = _instantiate(model)(dictionary=partial(made, shape, d_sae=F))
    x = rows() / SCALE
    with torch.no_grad():
        if model not in MODELS:
            sae.calibrate_(x)
        else:
            for parameter in sae.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
            sae.calibrate_(x)
            for name, value in sae.named_parameters():
                if name == "threshold":
                    value.clamp_(min=0)
    hooks = (
        {"x": ["model.layers.3.mlp:in"], "y": ["model.layers.3.mlp"]}
        if "transcoder" in kind
        else {"x": ["model.layers.3"], "y": ["model.layers.3"]}
    )
    about = {"architecture": model, "rows": 1000, "step": 10, "views": VIEWS.get(kind, "pair"), "hook": hooks["x"][0], "hooks": hooks,
             "transformer": {"loader": "huggingface", "name": "some/transformer"}}  # fmt: skip
    inference = sae.to_inference()
    return InferenceSAE(
        dict(inference.named_buffers()), subtract=inference.subtract, k=inference.k, cap=inference.cap, about=about
    ).rescaled(torch.full((shape.d_in,), SCALE), torch.full((shape.d_out,), 0.8 * SCALE if "transcoder" in kind else SCALE))


@cache
def _instantiate(model: str):
    from hydra.utils import instantiate

    return instantiate(settings(model, fitting(model)))


def in_double(sae: InferenceSAE) -> InferenceSAE:
    return InferenceSAE(
        {name: weight.double() for name, weight in sae.named_buffers()}, subtract=sae.subtract, k=sae.k, cap=sae.cap, about=sae.about
    )


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], sae: InferenceSAE, x: Tensor) -> dict[str, float]:
    """(latents, x̂) are the same: x̂ to 1e-5 of its length, latents where h is further than 1e-4 RMS(h) from where it becomes active.

    In float64 to 1e-12, all latents. `sae`: whose h that is. Returns the largest differences.
    """
    is_exact = x.dtype == torch.float64
    error = float((found[1] - expected[1]).norm() / expected[1].norm())
    h = (x - sae.b_dec if sae.subtract else x) @ sae.W_enc.T + sae.b_enc
    rms = h.square().mean().sqrt()
    edge = sae.threshold if sae.k is None else _between(h, sae.k)
    assert edge is not None
    sure = (h - edge).abs() > (1e-12 if is_exact else 1e-4) * rms
    assert sure.double().mean() > 0.95
    apart = float(((found[0] - expected[0]).abs() * sure).max() / rms)
    assert error <= (1e-12 if is_exact else 1e-5), error
    assert apart <= (1e-12 if is_exact else 1e-5), apart
    assert (expected[0] > 0).any()
    return {"x̂": error, "latents": apart}


def _between(h: Tensor, k: int) -> Tensor:
    """Of each row, half way between the last h that is chosen and the next one."""
    largest = h.relu().topk(k + 1, dim=1).values
    return largest[:, -2:].mean(1, keepdim=True)


def outputs(sae: InferenceSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        latents = sae.encode(x)
        return latents.dense(), sae.reconstruct(x, latents)


def assert_bitwise(found: InferenceSAE, expected: InferenceSAE) -> None:
    assert (found.subtract, found.k, found.cap) == (expected.subtract, expected.k, expected.cap)
    assert_close(dict(found.named_buffers()), dict(expected.named_buffers()), rtol=0, atol=0)
