"""An SAE in the place of an activation: of any module, by its path."""

import copy
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hooks import read

D, F = 8, 40


def sae_of(d_in: int = D, d_out: int = D, about: dict | None = None, seed: int = 0) -> InferenceSAE:
    g = torch.Generator().manual_seed(seed)
    weights = {"W_enc": torch.randn(F, d_in, generator=g), "W_dec": torch.randn(F, d_out, generator=g) / 5,
               "b_enc": torch.randn(F, generator=g), "b_dec": torch.randn(d_out, generator=g), "threshold": torch.rand(F, generator=g)}  # fmt: skip
    return InferenceSAE(weights, subtract=d_in == d_out, about=about)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Part(nn.Module):
    """Returns its result as a `kind`, and takes its input by keyword."""

    def __init__(self, kind: str):
        super().__init__()
        self.linear, self.kind = nn.Linear(D, D), kind

    def forward(self, *, x: Tensor):
        y = self.linear(x)
        return {"tensor": y, "tuple": (y, x), "list": [y, x], "named tuple": Pair(y, x), "mapping": OrderedDict(first=y, second=x)}[
            self.kind
        ]


class Whole(nn.Module):
    def __init__(self, kind: str = "tensor"):
        super().__init__()
        self.a, self.b, self.kind = Part(kind), nn.Linear(D, 3), kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x=x)
        if self.kind == "named tuple":
            y = y.first
        elif self.kind == "mapping":
            y = y["first"]
        elif self.kind != "tensor":
            y = y[0]
        return self.b(y)


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=D, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)


IDS = torch.arange(24).reshape(2, 12) % 40


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "named tuple", "mapping"])
@pytest.mark.parametrize("leading", [(5,), (2, 3), (2, 3, 4)])
def test_any_module_goes_on_with_the_reconstruction(kind: str, leading: tuple[int, ...]) -> None:
    model, sae, x = Whole(kind), sae_of(), torch.randn(*leading, D)
    plain, y = model(x), model.a.linear(x)
    with sae.splice(model, "a") as spliced:
        assert_close(model(x), model.b(sae(y)))
        assert_close(spliced.latents.dense(), sae.encode(y).dense())
    with sae.splice(model, "a:in"):
        assert_close(model(x), model.b(model.a.linear(sae(x))))
    with pytest.raises(RuntimeError, match="shapes"), sae.splice(model, "a:in"):
        model.b(x[..., :1])
    assert_close(model(x), plain, rtol=0, atol=0)


def test_ablated_and_steered_latents_have_these_values_and_the_error_is_kept(llama: nn.Module) -> None:
    sae, hook = sae_of(), "model.layers.1"
    x = read(llama, [hook], IDS)[hook]
    f = sae.encode(x).dense()
    active = [int(j) for j in f.sum((0, 1)).topk(2).indices]
    silent = int(f.sum((0, 1)).argmin())
    wanted = f.clone()
    wanted[..., active[0]], wanted[..., active[1]], wanted[..., silent] = 0.0, 2.5, 1.5
    chosen = {"ablate": [active[0]], "steer": {active[1]: 2.5, silent: 1.5}}
    for error, expected in ((False, sae.decode(wanted)), (True, x + (wanted - f) @ sae.W_dec)):
        with sae.splice(llama, hook, error=error, **chosen) as spliced:
            assert_close(read(llama, ["model.layers.2:in"], IDS)["model.layers.2:in"], expected, rtol=1e-5, atol=1e-5)
        assert_close(spliced.latents.dense(), f)
    plain = llama(input_ids=IDS).logits
    with sae.splice(llama, hook, error=True):
        assert_close(llama(input_ids=IDS).logits, plain, rtol=1e-5, atol=1e-5)


def test_special_positions_stay_and_latents_are_those_of_the_others(llama: nn.Module) -> None:
    sae, special = sae_of(), torch.zeros(2, 12, dtype=torch.bool)
    special[0, 0] = special[1, 3:5] = True
    x = read(llama, ["model.layers.1"], IDS)["model.layers.1"]
    with sae.splice(llama, "model.layers.1", special=special) as spliced:
        found = read(llama, ["model.layers.2:in"], IDS)["model.layers.2:in"]
    assert_close(found, torch.where(special[..., None], x, sae(x)))
    assert_close(spliced.latents.dense(), sae.encode(x[~special]).dense())


def test_a_transcoder_is_read_at_one_place_and_written_at_another(llama: nn.Module) -> None:
    mlp, special = "model.layers.1.mlp", torch.zeros(2, 12, dtype=torch.bool)
    special[:, 0] = True
    sae = sae_of(about={"hooks": {"x": [f"{mlp}:in"], "y": [mlp]}})
    seen = read(llama, [f"{mlp}:in", mlp], IDS)
    for mask in (None, special):
        with sae.splice(llama, special=mask), sae.splice(llama, f"{mlp}:in", mlp, error=True, special=mask):
            pass
        with sae.splice(llama, special=mask):
            found = read(llama, [mlp], IDS)[mlp]
        assert_close(found, sae(seen[f"{mlp}:in"]) if mask is None else torch.where(mask[..., None], seen[mlp], sae(seen[f"{mlp}:in"])))
    with sae.splice(llama, error=True, steer={3: 2.0}):
        found = read(llama, [mlp], IDS)[mlp]
    f = sae.encode(seen[f"{mlp}:in"]).dense()[..., 3:4]
    assert_close(found, seen[mlp] + (2.0 - f) * sae.W_dec[3], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="name both"), sae.splice(llama, mlp):
        pass
    with pytest.raises(InputError, match=r"reaches 'model.layers.0' before"), sae.splice(llama, mlp, "model.layers.0"):
        llama(input_ids=IDS)


def test_several_saes_at_once(llama: nn.Module) -> None:
    one, two = sae_of(seed=1), sae_of(seed=2)
    with one.splice(llama, "model.layers.0"):
        x = read(llama, ["model.layers.1"], IDS)["model.layers.1"]
        with two.splice(llama, "model.layers.1"):
            assert_close(read(llama, ["model.layers.2:in"], IDS)["model.layers.2:in"], two(x))
        assert_close(read(llama, ["model.layers.2:in"], IDS)["model.layers.2:in"], x)


def test_gradients_reach_what_is_below_and_the_latents(llama: nn.Module) -> None:
    sae, inner = sae_of(), Whole()
    x = torch.randn(6, D, requires_grad=True)
    with sae.splice(inner, "a"):
        (got,) = torch.autograd.grad(inner(x).square().sum(), x)
    (expected,) = torch.autograd.grad(inner.b(sae(inner.a.linear(x))).square().sum(), x)
    assert_close(got, expected)
    with sae.splice(inner, "a", error=True) as spliced:
        loss = inner(x).sum()
    values = spliced.latents.values
    (by_latent,) = torch.autograd.grad(loss, values)
    towards = sae.W_dec @ inner.b.weight.sum(0)  # of f_j on the sum: W_dec[j] · Σ_i b[i]
    assert_close(by_latent[values > 0], spliced.latents.at(towards).expand_as(values)[values > 0])


@pytest.mark.parametrize("how", ["whole", "a part", "in place"])
def test_a_compiled_model_is_spliced_and_is_itself_again_afterwards(how: str) -> None:
    torch.compiler.reset()
    sae, model, x = sae_of(), Whole(), torch.randn(3, D)
    with torch.no_grad():
        plain, expected = model(x), model.b(sae.reconstruct(y := model.a.linear(x), sae.encode(y), sae.fix({3: 2.0})))
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "a part":
        model.a = torch.compile(model.a, backend="eager")
    else:
        model.compile(backend="eager")
    for _ in range(2):
        assert_close(model(x), plain)
        for hook, there in (("a", expected), ("b:in", expected)):
            with sae.splice(model, hook, steer={3: 2.0}):
                assert_close(model(x), there)
    assert not torch.allclose(plain, expected)


def test_bfloat16_and_float64_models(llama: nn.Module) -> None:
    sae, hook = sae_of(), "model.layers.1"
    for dtype in (torch.bfloat16, torch.float64):
        model = copy.deepcopy(llama).to(dtype)
        x = read(model, [hook], IDS)[hook]
        for kind in (torch.float32, torch.bfloat16, torch.float64):
            one = copy.deepcopy(sae).to(kind)
            with one.splice(model, hook):
                found = read(model, ["model.layers.2:in"], IDS)["model.layers.2:in"]
            assert found.dtype == dtype
            assert_close(found, one(x.to(torch.promote_types(dtype, torch.float32))).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("about", "arguments", "says"),
    [
        ({}, {}, "does not say where it was trained"),
        ({}, {"hook": "model.layer.1"}, "the nearest modules are model.layers.1"),
        ({}, {"hook": "model.layers.1", "ablate": [F]}, f"there is no latent {F}: this SAE has {F}"),
        ({}, {"hook": "model.layers.1", "steer": {-1: 2.0}}, "there is no latent -1"),
        ({}, {"hook": "model.layers.1", "ablate": [3], "steer": {3: 2.0}}, "latent 3 is to be ablated and steered"),
        ({}, {"hook": "model.layers.1.mlp.up_proj"}, "gives rows of width 16 .* this SAE makes 8 of 8"),
        ({"hooks": {"x": ["a", "b"], "y": ["a", "b"]}}, {}, "a crosscoder of 2 hook points"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(about: dict, arguments: dict, says: str, llama: nn.Module) -> None:
    with pytest.raises(InputError, match=says) as error, sae_of(about=about).splice(llama, **arguments):
        llama(input_ids=IDS)
    assert "\n" not in str(error.value)
    assert not llama.get_submodule("model.layers.1")._forward_hooks
