from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.transformers.hook_names import to_name
from sae_lightning.transformers.hooks import place, read, splice
from tests.transformers.tiny import CONFIGS, UNKNOWN, tiny

IDS = torch.arange(24).reshape(2, 12) % 40


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_are_what_they_say(kind: str) -> None:
    """What a layer adds to the residual stream is hook_attn_out + hook_mlp_out, in every family, and no other tensors do."""
    model: Any = tiny(kind)
    names = [f"blocks.{i}.hook_{name}" for i in range(3) for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    found = read(model, ["hook_embed", *names], IDS)
    for i in range(3):
        before, attention, mlp, after = (found[name] for name in names[4 * i : 4 * i + 4])
        assert_close(after, before + attention + mlp, rtol=1e-5, atol=1e-5)
        if i:
            assert_close(before, found[f"blocks.{i - 1}.hook_resid_post"], rtol=0, atol=0)
    assert_close(found["hook_embed"], model.get_input_embeddings()(IDS))
    inner = read(model, ["blocks.1.attn.hook_z", "blocks.1.mlp.hook_post"], IDS)
    reads = [place(model, name).module for name in inner]
    for z, linear, name in zip(inner.values(), reads, ("attn_out", "mlp_out"), strict=True):
        after_norm = place(model, f"blocks.1.hook_{name}").module if kind in ("gemma2", "gemma3_text") else nn.Identity()
        assert_close(after_norm(linear(z)), found[f"blocks.1.hook_{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_there_and_back(kind: str) -> None:
    model = tiny(kind)
    modules = dict(model.named_modules())
    for name in ("hook_embed", "blocks.2.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out",
                 "blocks.0.attn.hook_z", "blocks.2.mlp.hook_post"):  # fmt: skip
        path = place(model, name).path
        assert to_name(path, modules) == name
        assert to_name(path) in (name, None)  # None: families differ
    assert to_name(place(model, "blocks.2.hook_resid_pre").path) == "blocks.2.hook_resid_pre"
    assert to_name("lm_head", modules) is None


def test_without_modules_a_path_that_families_read_differently_has_no_name() -> None:
    assert to_name("model.layers.3") == "blocks.3.hook_resid_post"
    assert to_name("transformer.h.11.mlp") == "blocks.11.hook_mlp_out"
    assert to_name("model.layers.3.mlp") is None  # hook_mlp_out of a Llama; of a Gemma 2 it is what the norm after it gives
    assert to_name("blocks.3.hook_resid_mid") == "blocks.3.hook_resid_mid"
    assert to_name("model.vision.layers.3") is None


def test_writing_at_a_name_is_writing_at_its_path() -> None:
    model = tiny("gemma2")

    def logits(hook: str) -> Tensor:
        with splice(model, hook, torch.zeros_like):
            return model(input_ids=IDS).logits

    assert_close(logits("blocks.1.hook_mlp_out"), logits("model.layers.1.post_feedforward_layernorm"), rtol=0, atol=0)
    assert not torch.allclose(logits("blocks.1.hook_mlp_out"), model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.1.hook_resid_mid", "the nearest are blocks.1.hook_resid_"),
        ("blocks.9.hook_resid_pre", "the nearest are blocks.[0-2].hook_resid_pre"),
        ("blocks.1.ln2.hook_normalized", "neither output nor input of a module"),
    ],
)
def test_a_name_that_is_no_hook_point_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(InputError, match=nearest) as error:
        place(tiny("llama"), name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_name_in_an_unknown_family_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="what it means in a transformer with these modules is not known: give the path of a module"):
        place(tiny(kind), "blocks.1.hook_resid_pre")
