"""What the null models owe: they compose, are fitted without a step, export, load, and have the L0 asked for."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.batch import Batch, Shape
from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.null.identity import Identity
from sae_lightning.models.null.pca import PCA
from sae_lightning.models.null.random_dictionary import RandomDictionary
from tests.architectures import ALL, MODELS
from tests.runs import SMALL, WITH_CALLBACKS, compose

NULLS = sorted(set(ALL) - set(MODELS))


def test_they_are_the_ones() -> None:
    assert NULLS == ["identity", "pca", "random_dictionary"]


@pytest.fixture(scope="module", params=NULLS)
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(name, a run that did nothing but its ends, in the way of train.py)."""
    from sae_lightning.run.build import build

    run = build(compose(f"model={request.param} model.k=5 {WITH_CALLBACKS}", tmp_path_factory.mktemp(request.param)))
    run.fit()
    return request.param, run


def test_there_was_no_step_and_there_is_a_score(fitted) -> None:
    name, run = fitted
    assert run.trainer.global_step == 0
    assert run.progress().is_done
    assert 0 < float(run.trainer.callback_metrics["val/explained_variance"]) < 1
    assert float(run.trainer.callback_metrics["val/miracle_distance"]) > 0
    assert json.loads((run.folder / "sae" / "sae.json").read_text())["about"]["architecture"] == name
    assert not (run.folder / "checkpoints").exists()


def test_what_is_exported_is_what_was_fitted(fitted) -> None:
    _, run = fitted
    exported, batch = load_sae(run.folder / "sae"), next(iter(run.data.held_out()))
    with torch.no_grad():
        step = run.module.raw(run.module.sae.step(*run.module.scaled(batch)))
    latents = exported.encode(batch.x)
    assert_close(exported(batch.x), step.reconstruction, rtol=1e-4, atol=1e-4)
    assert_close(latents.l0_per_row(), torch.full((len(batch.x),), 5))
    assert_close(latents.dense(), step.latents.dense(), rtol=1e-4, atol=1e-4)


def test_its_row_beside_another_sae_is_itself(fitted) -> None:
    """evaluation/null.py, in raw space on fewer rows, against the exported model."""
    from sae_lightning.evaluation import null

    name, run = fitted
    exported = load_sae(run.folder / "sae")
    beside = null.random_dictionary(run.data, 64, 5) if name == "random_dictionary" else getattr(null, name)(run.data, 5)
    x = run.data.sample(20_000, seed=3).x
    errors = [float((sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()) for sae in (exported, beside)]
    assert errors[0] == pytest.approx(errors[1], rel=0.1 if name == "random_dictionary" else 0.01)
    assert beside.about["architecture"] == name


def correlated(n: int = 4000, d: int = 8) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=g) @ torch.randn(d, d, generator=g) + 5


def make(null, k: int, d: int = 8, **settings):
    return null(partial(Dictionary, Shape((d,), (d,)), **(settings or {"expansion_factor": 8})), k)


def test_pca_explains_what_the_first_eigenvalues_are() -> None:
    """1 − FVU on the rows that it was fitted on is the share of the k largest eigenvalues of their covariance."""
    from sae_lightning.metrics.reconstruction_error import ReconstructionError

    x = correlated()
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T.double())).flip(0)
    for k in (1, 3, 8):
        sae, metric = make(PCA, k), ReconstructionError()
        sae.calibrate_(x)
        metric.update(Batch(x, x), sae.step(x, x))
        assert_close(
            metric.compute()["explained_variance"], eigenvalues[:k].sum() / eigenvalues.sum(), rtol=0, atol=1e-5, check_dtype=False
        )
        assert sae.dictionary.d_sae == 2 * k


def test_the_neuron_basis_keeps_the_coordinates_furthest_from_their_mean() -> None:
    sae = make(Identity, 1, d=3, d_sae=99)
    sae.calibrate_(torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 6.0]]))  # mean (1, 2, 3)
    y_hat = sae.step(*2 * (torch.tensor([[1.0, 5.0, 4.0], [1.5, 2.0, 2.0]]),)).reconstruction
    assert_close(y_hat, torch.tensor([[1.0, 5.0, 3.0], [1.0, 2.0, 2.0]]))  # 5 − 2 = 3 is the most, then 2 − 3 = −1
    whole = make(Identity, 8)
    x = correlated()
    whole.calibrate_(x)
    assert_close(whole.step(x, x).reconstruction, x)


def test_a_random_dictionary_has_the_best_length() -> None:
    torch.manual_seed(0)
    x = correlated() * 10
    sae = make(RandomDictionary, 3)
    sae.calibrate_(x)
    error = sae.step(x, x).loss
    for factor in (0.95, 1.05):
        sae.dictionary.W_dec.mul_(factor)
        assert sae.step(x, x).loss > error
        sae.dictionary.W_dec.div_(factor)
    assert error < (x - x.mean(0)).square().sum(1).mean()


@pytest.mark.parametrize("null", [PCA, Identity, RandomDictionary])
def test_what_cannot_be_is_refused(null) -> None:
    for k in (0, 65 if null is RandomDictionary else 9):
        with pytest.raises(InputError, match=r"model\.k is "):
            make(null, k)
    for wrong in (
        partial(Dictionary, Shape((8,), (4,)), expansion_factor=8),
        partial(_not_subtracting, Shape((8,), (8,)), expansion_factor=8),
    ):
        with pytest.raises(InputError, match="dictionary=autoencoder"):
            null(wrong, 2)


def _not_subtracting(*args, **kwargs) -> Dictionary:
    return Dictionary(*args, **kwargs | {"subtract": False})


def test_more_than_one_process_is_refused(tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError, match=r"trainer\.devices=1"):
        build(compose(f"model=pca model.k=5 {SMALL} callbacks=none strategy=ddp trainer.devices=2", tmp_path))
