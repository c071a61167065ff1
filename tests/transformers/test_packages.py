"""Transformers from the package index, really fetched: once for all tests of a run, or ever, with SAE_LIGHTNING_TEST_CACHE set."""

import hashlib
import importlib
import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lightning.errors import InputError
from sae_lightning.transformers.glassllm import GlassLLM
from sae_lightning.transformers.packages import copy_licence, fetch_source, fetch_wheel
from sae_lightning.transformers.smollm2 import SmolLM2

TEXT = "Alice was beginning to get very tired of sitting by her sister on the bank,\n and  of “nothing” to do — once or twice"


@pytest.fixture(scope="module")
def glassllm() -> GlassLLM:
    return GlassLLM(os.environ["SAE_LIGHTNING_TEST_CACHE"])


def test_glassllm_is_described_without_being_fetched(tmp_path: Path):
    transformer = GlassLLM(str(tmp_path / "cache"), hooks=["model.layers.1"])
    assert transformer.identity()["version"] == "0.1.0"
    assert transformer.hooks == ["model.layers.1"]
    assert not (tmp_path / "cache").exists()


def test_glassllm_computes_what_its_own_package_computes(glassllm: GlassLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its package is a NumPy implementation: another code, the same weights."""
    wheel = fetch_wheel(GlassLLM.package, GlassLLM.version, GlassLLM.sha256, tmp_path)
    monkeypatch.syspath_prepend(str(wheel))
    package = importlib.import_module("glassllm")
    try:
        original, tokenizer = package.load_pretrained("en")
        ids = tokenizer.encode(TEXT)
        assert glassllm.tokenizer()(TEXT)["input_ids"] == ids
        assert glassllm.tokenizer().decode(ids) == TEXT
        with package.no_grad():
            expected = torch.from_numpy(original.forward(ids).data).float()
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "glassllm"]:
            del sys.modules[name]
    torch.testing.assert_close(glassllm.load()(input_ids=torch.tensor([ids])).logits, expected, atol=2e-4, rtol=0)


def test_glassllm_in_the_cache(glassllm: GlassLLM):
    assert glassllm.hooks == ["model.layers.1"]
    assert glassllm.widths(["model.layers.1", "model.layers.3.mlp.down_proj:in"]) == {
        "model.layers.1": 128,
        "model.layers.3.mlp.down_proj:in": 341,
    }
    assert glassllm.special_ids() == set()  # its <bos>, <eos> and <pad> were never trained
    assert glassllm.max_context() == 128
    files = {file.name for file in glassllm.folder.iterdir()}
    assert files == {"LICENSE", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(GlassLLM, "sha256", "0" * 64)
    with pytest.raises(InputError, match="is not the file that was tested") as error:
        GlassLLM(str(tmp_path)).config()
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["glassllm-0.1.0.lock"])  # nothing half-made stays


def test_a_package_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull if name == "PIP_CONFIG_FILE" else str(tmp_path))
    with pytest.raises(InputError, match=r"pip cannot fetch the transformer's package glassllm==0\.1\.0 \(.+\): ") as error:
        GlassLLM(str(tmp_path)).load()
    assert "\n" not in str(error.value)


def test_sources_are_fetched_where_they_are_those_that_are_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a folder, without an index. Nothing that is in other ones runs: pip compares their hash first."""
    contents = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nLicense: MIT\n",
        "setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='tiny-weights', version='1.0')\n",
    }
    package = tmp_path / "tiny_weights-1.0.tar.gz"
    with tarfile.open(package, "w:gz") as archive:
        for name, text in contents.items():
            entry = tarfile.TarInfo(f"tiny_weights-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    folders = [tmp_path / "refused", tmp_path / "fetched"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(InputError, match=r"^tiny-weights==1\.0 has not the sha256 that is pinned, 000000000000…: .* do not use it$"):
        fetch_source("tiny-weights", "1.0", "0" * 64, folders[0])
    assert not (tmp_path / "ran").exists()
    sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
    fetched = fetch_source("tiny-weights", "1.0", sha256, folders[1])
    assert fetched.read_bytes() == package.read_bytes()
    copy_licence(fetched, folders[1])
    assert "License: MIT" in (folders[1] / "LICENSE").read_text()


# Slow: 93 MB to fetch, 135 million weights to unpack.
@pytest.mark.slow
def test_smollm2_writes_english():
    transformer = SmolLM2(os.environ["SAE_LIGHTNING_TEST_CACHE"])
    assert transformer.widths(["model.layers.14"]) == {"model.layers.14": 576}
    assert transformer.hooks == ["model.layers.14"]
    tokenizer: Any = transformer.tokenizer()
    assert transformer.special_ids() == {tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    assert tokenizer.tokenize("in 1907") == ["in", "Ġ", "1", "9", "0", "7"]
    text = "The capital of France is Paris, and the capital of Germany is"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = transformer.load()(input_ids=ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Berlin"
    assert torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]) < 3.5
