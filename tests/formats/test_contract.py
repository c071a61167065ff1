"""Every architecture in every format: it comes back as the same function, or is refused with the reason and the nearest format."""

import sys
from pathlib import Path

import pytest
import torch

from sae_lightning import formats
from sae_lightning.errors import InputError
from sae_lightning.formats.base import is_relu
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from tests.formats.saes import EXPORTS, assert_bitwise, assert_same, exported, in_double, outputs, rows

NAMES = [one.name for one in formats.formats()]
DL, GEMMA, LENS, SPARSIFY = "dictionary_learning", "gemma_scope", "saelens", "sparsify"
HOLDS: dict[tuple[str, str], set[str]] = {
    ("k", "autoencoder"): {DL, LENS, SPARSIFY},
    ("k", "transcoder"): {SPARSIFY},
    ("k", "transcoder, skip"): {SPARSIFY},
    ("θ", "autoencoder"): {DL, GEMMA, LENS},
    ("θ", "transcoder"): {GEMMA, LENS},
    ("θ", "transcoder, other width"): {GEMMA, LENS},
    ("θ", "transcoder, skip"): {LENS},
}
"""By how latents are chosen and kind. What is not here is held by none."""


def is_folded(sae: InferenceSAE, name: str) -> bool:
    """Whether the format says b_dec's part in h in b_enc."""
    if name in (LENS, SPARSIFY):
        return False
    return sae.subtract and not (name == DL and (sae.k is not None or is_relu(sae)))


def test_the_formats_are_these() -> None:
    assert NAMES == [DL, GEMMA, LENS, SPARSIFY]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("model", "kind"), EXPORTS)
def test_what_is_written_is_read_as_the_same_function(model: str, kind: str, name: str, tmp_path: Path) -> None:
    sae = exported(model, kind)
    holds = HOLDS.get(("θ" if sae.k is None else "k", kind), set())
    if name not in holds:
        with pytest.raises(InputError, match=rf"^{name} cannot hold this SAE: .+; ") as refused:
            formats.write(sae, tmp_path, name)
        nearest = f"the nearest that can: --to {' or '.join(sorted(holds))}" if holds else "no format here can"
        assert nearest in str(refused.value)
        assert not list(tmp_path.iterdir())
        return
    formats.write(sae, tmp_path / "one", name)
    found = formats.read(tmp_path / "one")
    assert found.about["imported"]["format"] == name
    assert_same(outputs(found, rows()), outputs(sae, rows()), sae, rows())
    if not is_folded(sae, name):
        assert_bitwise(found, sae)
    exact, x = in_double(sae), rows(torch.float64)
    formats.write(exact, tmp_path / "exact", name)
    assert_same(outputs(formats.read(tmp_path / "exact"), x), outputs(exact, x), exact, x)


def test_the_table_is_not_one_of_a_few() -> None:
    """Among what conf/model exports are all ways to be active."""
    autoencoders = [exported(model, kind) for model, kind in EXPORTS if kind == "autoencoder"]
    assert {(sae.k is not None, is_relu(sae), sae.subtract) for sae in autoencoders} == {
        (True, False, True), (False, True, True), (False, False, True), (False, False, False),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_cap_is_refused_by_all(name: str, tmp_path: Path) -> None:
    sae = exported("usage_kl", "autoencoder")
    capped = InferenceSAE(dict(sae.named_buffers()), subtract=sae.subtract, k=sae.k, cap=6.0, about=sae.about)
    with pytest.raises(InputError, match="per latent, and only top-k" if name == SPARSIFY else "capped at 6: train it with model.cap=null"):
        formats.write(capped, tmp_path, name)


def test_what_is_known_goes_along(tmp_path: Path) -> None:
    sae = exported("batch_topk", "transcoder")
    formats.write(sae, tmp_path, LENS, density := torch.linspace(0, 1, sae.d_sae))
    found = formats.read(tmp_path)
    for key in ("architecture", "rows", "step", "views", "hook", "hooks", "transformer"):
        assert found.about[key] == sae.about[key], key
    metadata = found.about["imported"]["metadata"]
    assert metadata["model_name"] == "some/transformer"
    assert (metadata["hook_name"], metadata["hook_name_out"]) == ("model.layers.3.mlp:in", "model.layers.3.mlp")
    torch.testing.assert_close(formats.by_name(LENS).density(tmp_path).float(), density, rtol=1e-5, atol=1e-9)


def test_the_residual_stream_gets_the_name_that_transformer_lens_has_for_it(tmp_path: Path) -> None:
    sae = exported("topk", "autoencoder")
    formats.write(sae, tmp_path, LENS)
    found = formats.read(tmp_path).about
    assert found["imported"]["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert found["hook"] == sae.about["hook"]


DUMMY = """
import json
import sys
from pathlib import Path
import torch
from sae_lightning.formats.base import Format, assembled, checked
from sae_lightning.formats.folding import weights_of

class Plain(Format):
    def recognises(self, path): return (path / "plain.json").is_file()
    def read(self, path):
        held = json.loads((path / "plain.json").read_text())
        weights = {name: torch.tensor(value) for name, value in held["weights"].items()}
        return assembled(path, checked(path, weights), subtract=held["subtract"], k=held["k"], about={}, config={"format": self.name})
    def refusal(self, sae): return None
    def usage(self, repository, folder): return f"{repository}/{folder}"
    def write(self, sae, folder, density=None):
        held = {"weights": {name: value.tolist() for name, value in weights_of(sae).items()}, "subtract": sae.subtract, "k": sae.k}
        (folder / "plain.json").write_text(json.dumps(held))
        return "plain"
"""


def test_a_format_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dummy.py").write_text(DUMMY)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(tmp_path)])
    formats.formats.cache_clear()
    try:
        sae = exported("topk", "transcoder, other width")
        with pytest.raises(InputError, match=r"the nearest that can: --to dummy$"):
            formats.write(sae, tmp_path / "sae", LENS)
        formats.write(sae, tmp_path / "sae", "dummy")
        assert_bitwise(load_sae(tmp_path / "sae"), sae)
    finally:
        formats.formats.cache_clear()
        sys.modules.pop("sae_lightning.formats.dummy", None)
