import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lightning.errors import InputError
from sae_lightning.transformers import hub
from sae_lightning.transformers.huggingface import HuggingFace
from tests.transformers.tiny_gpt2 import CONTEXT, save_tiny_gpt2


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "Tiny-GPT2"
    save_tiny_gpt2(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "Tiny-GPT2"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def test_a_local_folder(saved: Path):
    transformer = HuggingFace(str(saved))
    assert transformer.name == "tiny-gpt2"
    assert transformer.hooks == ["transformer.h.0"]  # the middle of two layers
    assert transformer.special_ids() == {0}
    assert transformer.max_context() == CONTEXT
    model = transformer.load()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = load_file(saved / "model.safetensors")["transformer.h.0.attn.c_attn.weight"]
    torch.testing.assert_close(model.get_parameter("transformer.h.0.attn.c_attn.weight"), expected, rtol=0, atol=0)
    assert transformer.load() is model
    assert HuggingFace(str(saved), dtype="bfloat16").load().dtype == torch.bfloat16


def test_random_weights_are_drawn_by_their_seed(folder: Path):
    """GPT-2 starts its matrices at a standard deviation of 0.02, and its layer norms at 1."""
    trained = HuggingFace(str(folder))
    drawn = HuggingFace(str(folder), random_weights=3)
    before = torch.random.get_rng_state()
    name = "transformer.h.0.mlp.c_fc.weight"
    weight = drawn.load().get_parameter(name)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    assert 0.018 < float(weight.std()) < 0.022
    assert bool((drawn.load().get_parameter("transformer.ln_f.weight") == 1).all())
    assert not bool((weight == HuggingFace(str(folder), random_weights=4).load().get_parameter(name)).any())
    torch.testing.assert_close(HuggingFace(str(folder), random_weights=3)._load().get_parameter(name), weight, rtol=0, atol=0)
    assert drawn.identity() == trained.identity() | {"random_weights": 3}
    model = trained.load()
    assert drawn.trained().load() is model
    assert drawn.load() is not model


def test_widths_need_no_weights(folder: Path):
    (folder / "model.safetensors").unlink()
    transformer = HuggingFace(str(folder))
    hooks = ["transformer.h.1", "transformer.h.0.mlp.c_fc", "transformer.h.0.mlp:in"]
    assert transformer.widths(hooks) == {"transformer.h.1": 16, "transformer.h.0.mlp.c_fc": 64, "transformer.h.0.mlp:in": 16}
    with pytest.raises(InputError, match=r"nearest modules are transformer\.h\.1"):
        transformer.widths(["transformer.h.2"])
    with pytest.raises(InputError, match="cannot read the weights"):
        transformer.load()


def test_the_identity_is_the_content(folder: Path, saved: Path):
    here, there = HuggingFace(str(folder)).identity(), HuggingFace(str(saved)).identity()
    assert here == there
    assert HuggingFace(str(folder), dtype="bfloat16").identity() != there
    (folder / "generation_config.json").write_text("{}")
    assert HuggingFace(str(folder)).identity() == there
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert HuggingFace(str(folder)).identity() != there


def test_missing_weights_are_not_replaced_by_random_ones(folder: Path):
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack 1 tensors, transformer\.h\.1\.mlp\.c_fc\.weight"):
        HuggingFace(str(folder)).load()


def test_an_unreadable_folder_is_one_line(folder: Path, tmp_path: Path):
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(InputError, match="cannot read the weights") as weights:
        HuggingFace(str(folder)).load()
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the configuration") as config:
        HuggingFace(str(folder)).config()
    for error in (weights, config):
        assert "\n" not in str(error.value)
    for name in (tmp_path / "nothing", "./nothing", "~/no/such/folder"):
        with pytest.raises(InputError, match=r"no config\.json"):
            HuggingFace(str(name)).config()


def test_pickled_weights_are_refused(folder: Path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        HuggingFace(str(folder)).load()


def test_no_network_is_one_quick_line(no_network: None):
    start = time.monotonic()
    for ask in (HuggingFace("gpt2").config, HuggingFace("gpt2").tokenizer, HuggingFace("gpt2").load, HuggingFace("gpt2").identity):
        with pytest.raises(InputError, match=r"the hub cannot be reached for the .* of transformer 'gpt2'") as error:
            ask()
        assert "\n" not in str(error.value)
    assert time.monotonic() - start < 8


def test_an_unknown_dtype():
    with pytest.raises(InputError, match="float32, bfloat16"):
        HuggingFace("gpt2", dtype="float64")
