"""Every architecture as a transcoder, with and without a skip connection, and as a crosscoder."""

import itertools
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.models.crosscoder import crosscoder
from sae_lightning.models.dictionary import geometric_median
from sae_lightning.models.topk import TopK
from sae_lightning.models.transcoder import transcoder
from tests.models.build import D_OUT, KINDS, OTHERS, D, F, cases, gradients, pair

MODELS = {(kind, name): make for kind in OTHERS for name, make in cases(kind).items()}
PAIR, STACK = Shape((D,), (D_OUT,)), Shape((3, 3), (3, 3))


@pytest.mark.parametrize("case", MODELS, ids=", ".join)
def test_sparse_equals_dense(case: tuple[str, str]) -> None:
    x, y = pair(case[0])
    sparse, dense = MODELS[case](True), MODELS[case](False)
    a, b = sparse.step(x, y), dense.step(x, y)
    assert_close(a.latents.dense(), b.latents.dense())
    assert_close({name: term.value for name, term in a.losses.items()}, {name: term.value for name, term in b.losses.items()})
    assert_close(gradients(sparse, x, y), gradients(dense, x, y), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", MODELS, ids=", ".join)
def test_every_parameter_gets_a_gradient(case: tuple[str, str]) -> None:
    for name, gradient in gradients(MODELS[case](None), *pair(case[0])).items():
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("case", MODELS, ids=", ".join)
def test_a_reconstruction_is_what_its_definition_says(case: tuple[str, str]) -> None:
    """ŷ = f W_decᵀ + b_dec (+ W_skip x), and h = W_enc x + b_enc whatever b_dec is: of one row at a time, in NumPy's order of indices."""
    kind, sae = case[0], MODELS[case](None)
    x, y = pair(kind)
    step, d = sae.step(x, y), sae.dictionary
    y_hat = torch.einsum("bf,fo->bo", step.latents.dense(), d.W_dec) + d.b_dec
    if d.W_skip is not None:
        y_hat = y_hat + torch.einsum("bi,oi->bo", x, d.W_skip)
    assert_close(step.reconstruction, y_hat)
    assert_close(d.encode(x).h, torch.einsum("bi,fi->bf", x, d.W_enc) + d.b_enc)


@pytest.mark.parametrize("case", MODELS, ids=", ".join)
def test_what_is_exported_is_what_was_trained(case: tuple[str, str]) -> None:
    """In raw space, with other scales of x and of y, or of each hook point. Latents may be those of a decoder with rows of norm 1."""
    kind, sae = case[0], MODELS[case](None).eval()
    x, y = pair(kind)
    shape = KINDS[kind].shape
    s_in = torch.cat([torch.full((d,), 2.0 + 3 * i, dtype=torch.float64) for i, d in enumerate(shape.x)])
    s_out = s_in if y is x else torch.full((shape.d_out,), 0.7, dtype=torch.float64)
    unit = s_in[0] if len(shape.x) == 1 else torch.ones((), dtype=torch.float64)
    step, exported = sae.step(x, y), sae.to_inference().double().rescaled(s_in, s_out, unit)
    assert_close(exported(s_in * x), (s_out * step.reconstruction).detach())
    latents = exported.encode(s_in * x).dense() * exported.W_dec.norm(dim=1)
    length = (sae.dictionary.W_dec * s_out).norm(dim=1)
    assert_close(latents, (step.latents.dense() * length).detach())


def test_folding_scales_as_the_definitions_say() -> None:
    """Transcoder: b_enc, θ × s_in; W_dec, W_skip × s_out/s_in; b_dec × s_out. Crosscoder: W_enc,l / s_l, W_dec,l and b_dec,l × s_l."""
    g = torch.Generator().manual_seed(0)

    def sae(shape: Shape, skip: bool) -> InferenceSAE:
        sizes = {"W_enc": (F, shape.d_in), "W_dec": (F, shape.d_out), "b_enc": (F,), "b_dec": (shape.d_out,), "threshold": (F,)}
        sizes |= {"W_skip": (shape.d_out, shape.d_in)} if skip else {}
        return InferenceSAE({name: torch.rand(size, generator=g, dtype=torch.float64) for name, size in sizes.items()}, subtract=False)

    old, one = sae(PAIR, True), torch.ones(D, dtype=torch.float64)
    new = old.rescaled(2 * one, 6 * one[:D_OUT], torch.tensor(2.0).double())
    wanted = {"W_enc": old.W_enc, "b_enc": 2 * old.b_enc, "W_dec": 3 * old.W_dec, "b_dec": 6 * old.b_dec}
    assert old.W_skip is not None
    assert old.threshold is not None
    wanted |= {"W_skip": 3 * old.W_skip, "threshold": 2 * old.threshold}
    assert_close(dict(new.named_buffers()), wanted)
    old, s = sae(STACK, False), torch.tensor([2.0, 2, 2, 5, 5, 5]).double()
    new = old.rescaled(s, s, torch.tensor(1.0).double())
    wanted = {"W_enc": old.W_enc / s, "b_enc": old.b_enc, "W_dec": s * old.W_dec, "b_dec": s * old.b_dec, "threshold": old.threshold}
    assert_close(dict(new.named_buffers()), wanted)


def test_the_largest_of_a_crosscoder_are_those_that_add_most() -> None:
    """h = (3, 2), decoder rows of norms 1 + 0 and 0.6 + 1.5 over its two hook points: 3 against 4.2, so the second is active, with f = 2.

    Exported with its norm folded in: h = (3, 4.2), f = 4.2, the decoder row divided by 2.1.
    """
    sae = TopK(partial(crosscoder, Shape((2, 2), (2, 2)), d_sae=2), k=1)
    d = sae.dictionary
    with torch.no_grad():
        d.W_enc.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, 2]]))
        d.W_dec.copy_(torch.tensor([[1.0, 0, 0, 0], [0.6, 0, 0, 1.5]]))
    assert_close(d.norms(), torch.tensor([1.0, 2.1]))
    x = torch.tensor([[1.0, 0, 0, 1]])
    step = sae.step(x, x)
    assert_close(step.latents.dense().detach(), torch.tensor([[0.0, 2]]))
    assert_close(step.reconstruction.detach(), torch.tensor([[1.2, 0, 0, 3]]))
    exported = sae.to_inference()
    assert_close(exported.encode(x).dense(), torch.tensor([[0.0, 4.2]]))
    assert_close(exported(x), torch.tensor([[1.2, 0, 0, 3]]))
    assert_close(exported.W_dec, torch.tensor([[1.0, 0, 0, 0], [0.6 / 2.1, 0, 0, 1.5 / 2.1]]))


@pytest.mark.parametrize(("subtract", "unit_norm"), [*itertools.product([True, False], [True, False])])
def test_what_an_architecture_asks_for_yields_to_what_the_rows_allow(subtract: bool, unit_norm: bool) -> None:
    a = transcoder(PAIR, d_sae=F, subtract=subtract, unit_norm=unit_norm, init_norm=0.5)
    b = crosscoder(STACK, d_sae=F, subtract=subtract, unit_norm=unit_norm, init_norm=0.5)
    assert (a.subtract, a.unit_norm, b.subtract, b.unit_norm) == (False, unit_norm, False, False)
    for d in (a, b):
        assert_close(d.W_dec.norm(dim=1), torch.full((F,), 0.5))
    assert_close(b.W_enc, b.W_dec)
    assert a.selection_weight() is None
    assert_close(b.selection_weight(), (b.W_dec[:, :3].norm(dim=1) + b.W_dec[:, 3:].norm(dim=1)).detach())


def test_b_dec_starts_at_the_median_of_y_and_the_skip_connection_at_nothing() -> None:
    d = transcoder(PAIR, d_sae=F, skip=True)
    y = pair("transcoder")[1].float()
    d.initialise_(y)
    assert_close(d.b_dec.detach(), geometric_median(y))
    assert d.W_skip is not None
    assert_close(d.W_skip.detach(), torch.zeros(D_OUT, D))
    assert {id(p) for p in d.decayed()} == {id(d.W_enc), id(d.W_skip)}


@pytest.mark.parametrize(
    ("make", "shape", "says"),
    [
        (transcoder, STACK, "a transcoder reads one hook point and writes one, these rows have 2: choose dictionary=crosscoder"),
        (crosscoder, Shape((6,), (6,)), "needs several hook points side by side, these rows have one: name two or more in data.hooks"),
        (crosscoder, PAIR, "needs several hook points side by side"),
        (crosscoder, Shape((2, 4), (2, 4)), "a crosscoder's hook points have one width, these have 2, 4: choose others in data.hooks"),
    ],
)
def test_rows_of_other_hook_points_are_refused_in_one_line(make, shape: Shape, says: str) -> None:
    with pytest.raises(InputError) as refused:
        make(shape, d_sae=F)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
