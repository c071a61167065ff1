"""`python -m sae_lightning.formats`, and SAEs of other libraries where one of ours would do: evaluate.py, model.init_from."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch.testing import assert_close

from sae_lightning import formats
from sae_lightning.errors import InputError
from sae_lightning.formats.command import main
from sae_lightning.formats.density import write_density
from sae_lightning.formats.folding import with_unit_decoder
from sae_lightning.inference import InferenceSAE
from sae_lightning.load import load_sae
from tests.architectures import fitting
from tests.formats.saes import assert_bitwise, exported, in_double, outputs
from tests.formats.test_foreign import FOREIGN, LENS
from tests.run.test_init_from import rows, started
from tests.runs import SMALL, compose, fit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained topk on rows of width 16."""
    folder, words = tmp_path_factory.mktemp("outputs") / "topk", f"{SMALL} callbacks=none logger=none model.k=4"
    fit(words, folder).module.export().save(folder / "sae")
    (folder / ".hydra").mkdir()
    OmegaConf.save(compose(words, folder), folder / ".hydra" / "config.yaml")
    return folder


def test_there_and_back_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("saelens", "sparsify", "dictionary_learning"):
        assert main(["export", str(run / "sae"), "--to", name, name]) == 0
        assert "16 × 64" in capsys.readouterr().out
        assert main(["import", name]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"{name}: ")
        assert "16 × 64, k 4" in printed
        assert f"written to outputs/imported/{name}" in printed
        assert_bitwise(load_sae(f"outputs/imported/{name}"), load_sae(run))
    assert main(["import", "saelens", "--from", "saelens", "--out", "mine"]) == 0
    assert load_sae("mine").about["imported"]["architecture"] == "topk"


def test_from_one_library_to_another(tmp_path: Path) -> None:
    assert main(["export", str(FOREIGN / "sparsify/topk"), "--to", "saelens", str(tmp_path)]) == 0
    assert_bitwise(load_sae(tmp_path), load_sae(FOREIGN / "sparsify/topk"))


def test_the_density_of_latents_goes_along(run: Path, tmp_path: Path) -> None:
    """An evaluation of the run's SAE left it in the run's folder; it is not that of its other SAE."""
    density = torch.linspace(0, 1, 64)
    write_density(run, density)
    shutil.copytree(run / "sae", run / "sae_best")
    assert main(["export", str(run / "sae_best"), "--to", "saelens", str(tmp_path / "best")]) == 0
    assert not (tmp_path / "best/sparsity.safetensors").exists()
    assert main(["export", str(run), "--to", "saelens", str(tmp_path / "lens")]) == 0
    assert_close(load_file(tmp_path / "lens/sparsity.safetensors")["sparsity"], (density + 1e-10).log10())
    assert main(["import", str(tmp_path / "lens"), "--out", str(tmp_path / "ours")]) == 0
    assert_close(load_file(tmp_path / "ours/density.safetensors")["density"].float(), density, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "export {run} --to gemma_scope out",
            "gemma_scope cannot hold this SAE: it is top-k, and only a threshold per latent is known there; the nearest",
        ),
        ("export {run} --to saelen out", "there is no format 'saelen': choose one of dictionary_learning, gemma_scope, saelens, sparsify"),
        ("export nowhere --to saelens out", "nowhere is not a folder"),
        ("export {run} --to saelens {run}/sae", "holds an SAE of this package: choose another folder"),
        ("export {run} --to saelens {golden}/../sparsify/topk", "holds an SAE of sparsify: choose another folder"),
        ("import {run}/sae", "is of this package already"),
        ("import nowhere", "there is no nowhere"),
        (
            "import {golden}",
            "holds no SAE of a known format, dictionary_learning, gemma_scope, saelens, sparsify: name one of the folders in it",
        ),
        ("import {golden}/topk --from sparsify", "sae.safetensors is missing"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: str, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.format(run=run, golden=LENS.parent / "sae_lens").split()) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_there_is_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(LENS / "topk")]) == 0
    assert main(["import", str(LENS / "topk")]) == 2
    assert "outputs/imported/topk exists already: say where to with --out" in capsys.readouterr().err
    assert main(["import", str(LENS / "topk"), "--out", "outputs/imported/topk"]) == 0


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["formats", "import", "nowhere"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("sae_lightning.formats", run_name="__main__")
    assert capsys.readouterr().err == "error: there is no nowhere\n"


# -- where one of ours would do -------------------------------------------------------------------------------------------


def test_it_is_evaluated(run: Path, tmp_path: Path) -> None:
    """The same scores as the SAE that it was made of; also one in float64."""
    from sae_lightning.run.finish import score_all
    from tests.run.test_finish import config

    sae = load_sae(run)
    formats.write(sae, tmp_path / "plain", "saelens")
    formats.write(in_double(sae), tmp_path / "exact", "dictionary_learning")
    score_all(config(f"run={run}"))
    score_all(config(f"run={run}", f"sae=[{tmp_path}/plain,{tmp_path}/exact/ae.pt]"))
    places = [run, *(next((run / "evaluated").glob(f"{name}-*")) for name in ("plain", "exact"))]
    own, *others = (json.loads((place / "scores.json").read_text())["scores"]["sae"] for place in places)
    for scores in others:
        assert {key: value for key, value in scores.items() if "stability" not in key} == own


@pytest.mark.parametrize(
    ("model", "name", "is_exact"),
    [("jumprelu", "saelens", True), ("topk", "sparsify", False), ("lagrangian", "dictionary_learning", False)],
)
def test_a_run_starts_from_it(model: str, name: str, is_exact: bool, tmp_path: Path) -> None:
    held = exported(model, "autoencoder")
    weights = with_unit_decoder(dict(held.named_buffers())) if held.k is not None else dict(held.named_buffers())  # as it keeps them
    sae = InferenceSAE(weights, subtract=held.subtract, k=held.k, about=held.about)
    formats.write(in_double(sae) if is_exact else sae, tmp_path / "foreign", name)
    words = f"model={model} {fitting(model)} {SMALL} data.d=8 data.n_directions=16 data.l0=2 dictionary.d_sae=32 dictionary.expansion_factor=null"
    new = started(f"{words} model.init_from={tmp_path}/foreign", tmp_path / "run")
    x = rows(new)
    latents, x_hat = outputs(new.module.inference(), x)
    assert_close(x_hat, outputs(sae, x)[1], rtol=1e-3, atol=1e-2)
    assert float(((latents > 0) == (outputs(sae, x)[0] > 0)).double().mean()) > 0.999


def test_another_size_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(
        InputError, match=r"^model.init_from=.*: it reads rows of width 8 and writes 8, this run's are 16 and 16: choose its hook"
    ):
        build(compose(f"model=topk {fitting('topk')} {SMALL} model.init_from={LENS}/topk", tmp_path))
    with pytest.raises(
        InputError, match=r"^model.init_from=.*: .*holds no exported SAE: name one of the folders in it, batch_topk, .*, …$"
    ):
        build(compose(f"model=topk {fitting('topk')} {SMALL} model.init_from={LENS}", tmp_path))
