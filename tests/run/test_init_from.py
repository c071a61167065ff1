"""`model.init_from=`: a new run from the weights of an old one."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from tests.architectures import MODELS, fitting
from tests.run.test_resume_exact import Killed, train
from tests.runs import SMALL, WITH_CALLBACKS, compose


class Started(Exception): ...


class StopAtStart(L.Callback):
    """Before the first step."""

    def on_train_start(self, *_: Any) -> None:
        raise Started


def started(words: str, folder: Path):
    """A run that has taken no step."""
    from sae_lightning.run.build import build

    run = build(compose(f"{words} callbacks=none", folder))
    run.trainer.callbacks.append(StopAtStart())  # type: ignore[attr-defined]
    with pytest.raises(Started):
        run.fit()
    return run


def words(model: str, more: str = SMALL) -> str:
    return f"model={model} {fitting(model)} {more}"


class Old(NamedTuple):
    folder: Path
    subtract: bool
    unit_norm: bool


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Old]:
    """A trained run of each architecture, and how its dictionary differs from others'."""
    found = {}
    for model in MODELS:
        run = train(f"{words(model)} callbacks=[export] trainer.max_steps=20", tmp_path_factory.mktemp(model))
        found[model] = Old(run.folder, run.module.sae.dictionary.subtract, run.module.sae.dictionary.unit_norm)
    return found


def rows(run) -> torch.Tensor:
    return next(iter(run.data.held_out())).x


def partner(model: str, runs: dict[str, Old]) -> str:
    """An architecture whose dictionary is of another kind; neighbours in the list have different ones."""
    others = [other for other in MODELS if runs[other][1:] != runs[model][1:]]
    return others[MODELS.index(model) % len(others)]


@pytest.mark.parametrize("model", MODELS)
def test_the_same_architecture_starts_as_the_same_function(model: str, runs: dict[str, Old], tmp_path: Path) -> None:
    """On data of another scale, too: what was exported is in raw space."""
    run = started(f"{words(model)} model.init_from={runs[model].folder} data.scale=sqrt_d", tmp_path)
    x, old, new = rows(run), load_sae(runs[model].folder), run.module.inference()
    assert_close(new.encode(x).dense(), old.encode(x).dense(), rtol=1e-3, atol=1e-4)
    assert_close(new(x), old(x), rtol=1e-3, atol=1e-4)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        if (weight := getattr(old, name)) is not None:
            assert_close(getattr(new, name), weight, rtol=1e-4, atol=1e-5)


def assert_same_pre_activations(of: Old, to: str, folder: Path) -> None:
    """Each latent adds h_j W_dec,j where it is active; both factors may have other lengths."""
    run = started(f"{words(to)} model.init_from={of.folder}/sae", folder)
    x, old, new = rows(run), load_sae(of.folder), run.module.inference()
    h_old, h_new = ((x - sae.b_dec if sae.subtract else x) @ sae.W_enc.T + sae.b_enc for sae in (old, new))
    assert_close(h_new[:, :, None] * new.W_dec, h_old[:, :, None] * old.W_dec, rtol=1e-3, atol=1e-4)
    if run.module.sae.dictionary.unit_norm:
        assert_close(new.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("model", MODELS)
def test_another_architecture_starts_from_the_same_pre_activations(model: str, runs: dict[str, Old], tmp_path: Path) -> None:
    other = partner(model, runs)
    assert_same_pre_activations(runs[other], model, tmp_path / "from")
    assert_same_pre_activations(runs[model], other, tmp_path / "to")


def test_these_are_of_more_than_one_kind(runs: dict[str, Old]) -> None:
    assert {old[1:] for old in runs.values()} >= {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize("of", ["topk", "relu"])
def test_thresholds_that_are_not_there_are_calibrated(of: str, runs: dict[str, Old], tmp_path: Path) -> None:
    run = started(f"{words('lagrangian')} model.init_from={runs[of].folder}", tmp_path)
    l0 = float(run.module.inference().encode(rows(run)).l0_per_row().double().mean())
    assert 2.5 < l0 < 5.5  # target_l0 is 4
    assert float(run.module.inference().threshold.max()) > 0


def test_training_goes_on_from_there(runs: dict[str, Old], tmp_path: Path) -> None:
    fresh = train(words("topk", WITH_CALLBACKS), tmp_path / "fresh")
    onward = train(f"{words('topk', WITH_CALLBACKS)} model.init_from={runs['topk'].folder}", tmp_path / "onward")
    first, second = (float(run.trainer.callback_metrics["val/reconstruction"]) for run in (fresh, onward))
    assert second < 0.97 * first


def test_a_resumed_run_no_longer_needs_it(runs: dict[str, Old], tmp_path: Path) -> None:
    from shutil import copytree, rmtree

    copytree(runs["topk"].folder / "sae", tmp_path / "sae")
    command = f"{words('topk', WITH_CALLBACKS)} model.init_from={tmp_path / 'sae'}"
    with pytest.raises(Killed):
        train(command, tmp_path / "run", kill_after=20)
    rmtree(tmp_path / "sae")
    assert train(f"{command} resume={tmp_path / 'run'}", tmp_path / "run").trainer.global_step == 40


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("dictionary.expansion_factor=8", "it has 64 latents, this run 128: add dictionary.d_sae=64 dictionary.expansion_factor=null"),
        ("data.d=32 dictionary.expansion_factor=2", "it reads rows of width 16 and writes 16, this run's are 32 and 32"),
    ],
)
def test_another_size_is_refused_before_anything_is_done(more: str, said: str, runs: dict[str, Old], tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError) as refused:
        build(compose(f"{words('topk')} model.init_from={runs['topk'].folder} {more}", tmp_path))
    assert said in str(refused.value)
    assert str(refused.value).startswith(f"model.init_from={runs['topk'].folder}: ")


def test_what_is_no_sae_is_refused(tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError, match=r"model.init_from=.*nowhere: .* is not a folder"):
        build(compose(f"{words('topk')} model.init_from={tmp_path}/nowhere", tmp_path))
    with pytest.raises(InputError, match=r"model.init_from must be text or null, got 3"):
        compose(f"{words('topk')} model.init_from=3", tmp_path)
    with pytest.raises(InputError, match=r"did you mean model.init_from="):
        compose(f"{words('topk')} model.initfrom=a", tmp_path)


def test_what_is_fitted_to_the_rows_takes_no_weights(runs: dict[str, Old], tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError, match=r"^model.init_from=.*: random_dictionary is fitted to the rows, .*: leave model.init_from out$"):
        build(compose(f"model=random_dictionary {SMALL} model.init_from={runs['topk'].folder}", tmp_path))
