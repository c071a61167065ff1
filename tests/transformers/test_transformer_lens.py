"""TransformerLens's models, as a source and to splice into; and that its names mean what hook_names.py says."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sae_lightning.inference import InferenceSAE
from sae_lightning.transformers.hooks import read, splice
from sae_lightning.transformers.huggingface import HuggingFace
from sae_lightning.transformers.predictions import counted, observed, predictions, with_reconstructions
from tests.transformers.tiny import CONFIGS, tiny
from tests.transformers.tiny_gpt2 import save_tiny_gpt2

transformer_lens = pytest.importorskip("transformer_lens")

IDS = torch.arange(24).reshape(2, 12) % 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformer") / "gpt2"
    save_tiny_gpt2(path)
    return path


def bridge(model: nn.Module, folder: Path) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers("tiny", hf_model=model, tokenizer=HuggingFace(str(folder)).tokenizer(), device="cpu")


@pytest.mark.parametrize("kind", CONFIGS)
def test_names_are_transformer_lenss(kind: str, folder: Path) -> None:
    """Reading and writing at a name is the same in TransformerLens's model and in Hugging Face's."""
    theirs, plain = bridge(tiny(kind), folder), tiny(kind)
    names = ["hook_embed", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out",
             "blocks.1.mlp.hook_post"]  # fmt: skip
    expected, found = read(plain, names, IDS), read(theirs, names, IDS)
    for name in names:
        assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
        spliced = []
        for model in (theirs, plain):
            with splice(model, name, lambda rows: rows.flip(-1)):
                spliced.append(predictions(model, IDS, torch.zeros_like(IDS, dtype=torch.bool)))
        assert_close(*spliced, rtol=1e-4, atol=1e-5)


def test_it_reads_writes_and_predicts_as_hugging_face_does(folder: Path) -> None:
    from sae_lightning.transformers.transformer_lens import TransformerLens

    described, plain = TransformerLens(str(folder)), HuggingFace(str(folder)).load()
    assert described.hooks == ["blocks.0.hook_resid_post"]
    assert described.paths(["blocks.1.hook_resid_mid"]) == ["blocks.1.hook_resid_mid"]
    assert described.widths(["blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post"]) == {
        "blocks.1.hook_resid_mid": 16,
        "blocks.1.mlp.hook_post": 64,
    }
    assert described.identity() != HuggingFace(str(folder)).identity() != TransformerLens(str(folder), processed=True).identity()
    model, special = described.load(), IDS == 0
    logits, found = observed(model, IDS, special, ["blocks.1.hook_resid_pre"])
    expected, rows = observed(plain, IDS, special, ["transformer.h.1:in"])
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert_close(found["blocks.1.hook_resid_pre"], rows["transformer.h.1:in"], rtol=1e-5, atol=1e-5)
    halves = [rows["transformer.h.1:in"] / 2]
    spliced = [
        with_reconstructions(model, IDS, special, ["blocks.1.hook_resid_pre"], halves),
        with_reconstructions(plain, IDS, special, ["blocks.1.hook_resid_pre"], halves),
    ]
    assert_close(*spliced, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(spliced[0], expected)
    g = torch.Generator().manual_seed(0)
    W = torch.randn(30, 16, generator=g)
    sae = InferenceSAE({"W_enc": W, "W_dec": W, "b_enc": torch.zeros(30), "b_dec": torch.zeros(16)}, subtract=True, k=4)
    outputs = []
    for of in (model, plain):
        with sae.splice(of, "blocks.0.hook_mlp_out", steer={3: 2.0}, error=True):
            outputs.append(predictions(of, IDS, special))
    assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_processed_it_predicts_the_same_from_other_activations(folder: Path) -> None:
    from sae_lightning.transformers.transformer_lens import TransformerLens

    special = torch.zeros_like(IDS, dtype=torch.bool)
    models = [HuggingFace(str(folder)).load(), TransformerLens(str(folder), processed=True).load()]
    plain, processed = (predictions(model, IDS, special).log_softmax(-1) for model in models)
    assert_close(processed, plain, rtol=1e-4, atol=1e-4)
    x, centred = (read(model, ["blocks.1.hook_resid_pre"], IDS)["blocks.1.hook_resid_pre"] for model in models)
    assert_close(centred, x - x.mean(-1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert len(counted(special)) == len(plain)


def test_rows_and_scores_are_those_of_hugging_faces_model(folder: Path, tmp_path: Path) -> None:
    """Harvested and evaluated at a hook point by its name, which a store of Hugging Face's model has by its path."""
    from sae_lightning.data.sampled_text import SampledText
    from sae_lightning.data.sources import harvested
    from sae_lightning.evaluation.downstream import Downstream
    from sae_lightning.transformers.transformer_lens import TransformerLens

    made = []
    for transformer in (HuggingFace(str(folder)), TransformerLens(str(folder))):
        data = harvested(transformer, SampledText(batch_size=16), str(tmp_path), batch_size=32, hook="blocks.1.hook_resid_pre",
                         context_length=16, max_tokens=256, dtype="float32", forward_batch_size=4, validation_rows=64)  # fmt: skip
        data.prepare_data()
        data.setup("fit")
        made.append(data)
    assert [data.hook for data in made] == ["transformer.h.1:in", "blocks.1.hook_resid_pre"]
    rows = [data.store.rows_at(data.hook, torch.arange(200)) for data in made]
    assert_close(*rows, rtol=1e-5, atol=1e-5)
    W = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    sae = InferenceSAE({"W_enc": W, "W_dec": W, "b_enc": torch.zeros(30), "b_dec": torch.zeros(16)}, subtract=True, k=4)
    scores = [Downstream()(sae, data) for data in made]
    assert_close(*scores, rtol=1e-4, atol=1e-5)
    assert scores[0]["ce_sae"] != scores[0]["ce_clean"]
