"""The folder that goes to the hub, and the way there and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.evaluation.run import digest
from sae_lightning.evaluation.scores import SCHEMA
from sae_lightning.formats.hub import assemble
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from tests.transformers.loopback_hub import LoopbackHub

D, F = 8, 32
ABOUT = {
    "architecture": "jumprelu", "step": 100, "rows": 51_200, "views": "one", "hook": "model.layers.1",
    "transformer": {"name": "gpt2", "loader": "huggingface", "commit": "abc"}, "hooks": {"x": ["model.layers.1"], "y": ["model.layers.1"]},
    "data": {"text": {"text": "hub", "name": "<script>|**"}, "context_length": 128},
}  # fmt: skip


def sae(**changed: object) -> InferenceSAE:
    g = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(*shape, generator=g) for name, shape in {"W_enc": (F, D), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}.items()
    }
    return InferenceSAE(weights | {"threshold": torch.rand(F, generator=g)}, subtract=True, about=ABOUT | changed)


def a_run(folder: Path, made: InferenceSAE, of: InferenceSAE | None = None) -> Path:
    """As a run leaves it, with scores of the SAE `of`."""
    made.save(folder / "sae")
    scores = {
        "sae": {"explained_variance": 0.875, "l0": 4.0, "ce_sae": 3.5},
        "pca": {"explained_variance": 0.25, "l0": 4.0, "ce_sae": None},
    }
    (folder / "scores.json").write_text(json.dumps({"schema": SCHEMA, "sae": {"digest": digest(of or made)}, "scores": scores}))
    (folder / "plots").mkdir()
    (folder / "plots/latent_norms.png").write_bytes(b"png")
    return folder


def test_what_goes_to_the_hub(tmp_path: Path) -> None:
    made = sae()
    files = assemble(a_run(tmp_path / "run", made), "someone/an-sae", tmp_path / "out", ["saelens", "gemma_scope"], "mit")
    wanted = {
        "README.md",
        "sae.json",
        "sae.safetensors",
        "scores.json",
        "plots/latent_norms.png",
        "saelens/cfg.json",
        "gemma_scope/params.npz",
    }
    assert wanted <= set(files)
    x = torch.randn(5, D)
    for inner in ("", "saelens", "gemma_scope"):
        assert_close(load_sae(tmp_path / "out" / inner)(x), made(x))
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.license, card.data.base_model, card.data.library_name) == ("mit", "gpt2", "sae_lightning")
    assert "| explained_variance | 0.875 | 0.25 | share |" in card.text
    assert "| ce_sae | 3.5 | – | nats |" in card.text
    assert 'load_sae("someone/an-sae")' in card.text
    assert 'SAE.from_pretrained("someone/an-sae", "saelens"' in card.text
    assert "![latent norms](plots/latent_norms.png)" in card.text
    assert "51,200 rows in 100 steps" in card.text
    assert "<script>" not in card.text
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text() + (tmp_path / "out/scores.json").read_text()


def test_scores_of_another_sae_stay_where_they_are(tmp_path: Path) -> None:
    other = sae()
    other.b_enc += 1
    files = assemble(a_run(tmp_path / "run", sae(), of=other), "someone/an-sae", tmp_path / "out")
    assert not {"scores.json", "plots/latent_norms.png"} & set(files)
    assert "What it is worth" not in (tmp_path / "out/README.md").read_text()


def test_without_the_usual_format_where_that_cannot_hold_it(tmp_path: Path) -> None:
    sae(views="stack").save(tmp_path / "sae")
    files = assemble(tmp_path / "sae", "someone/an-sae", tmp_path / "out")
    assert files == ["README.md", "sae.json", "sae.safetensors"]
    with pytest.raises(InputError, match="it is a crosscoder"):
        assemble(tmp_path / "sae", "someone/an-sae", tmp_path / "other", ["saelens"])


@pytest.mark.parametrize("name", ["someone", "a/b/c", "../x", "someone/..", "some one/x", ""])
def test_no_repository(name: str, tmp_path: Path) -> None:
    sae().save(tmp_path / "sae")
    with pytest.raises(InputError, match="is no repository of the hub: write owner/name"):
        assemble(tmp_path / "sae", name, tmp_path / "out")


@pytest.mark.parametrize("name", ["x", "./a/b", "../a/b", "a/../b", "/a/b", "~/a/b"])
def test_a_path_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        load_sae(name)


# The endpoint is read when the client is imported, hence other processes.
THERE_AND_BACK = """
import sys, torch
from sae_lightning.formats.command import main
from sae_lightning.load import load_sae
assert main(["push", sys.argv[1], "someone/an-sae", "--licence", "mit"]) == 0
sae, same, here = load_sae("someone/an-sae"), load_sae("someone/an-sae/saelens"), load_sae(sys.argv[1])
x = torch.randn(5, 8)
assert torch.equal(sae(x), here(x)), "ours"
torch.testing.assert_close(same(x), here(x))
assert main(["push", sys.argv[1], "someone/an-sae", "--also", "nothing"]) == 2
try:
    load_sae("someone/else")
except Exception as error:
    print(type(error).__name__, error)
"""


# Slow: a process that imports the hub's client.
@pytest.mark.slow
def test_to_a_hub_and_back(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", sae())
    with LoopbackHub(tmp_path / "hub") as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": "hf_x",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        command = [sys.executable, "-c", THERE_AND_BACK, str(run)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, "\n".join([done.stderr, *hub.asked])
    assert f"{hub.url}/someone/an-sae" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1].startswith("InputError someone/else is no folder here, and the hub gives nothing of that name")
    assert done.stderr.splitlines()[-1].startswith("error: there is no format 'nothing'")
