"""2N steps are N steps, a kill, and the rest: bitwise, weights and optimizer and counters and curves and what is exported."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sae_lightning.callbacks.last import _validation_follows
from tests.architectures import MODELS, fitting, knob
from tests.data.tiny import harvest
from tests.runs import QUIET, compose

pytestmark = pytest.mark.usefixtures("unchecked")
STEPS, WINDOW, VALIDATED, RESAMPLED = 24, 4, 6, 8
"""The length of a run, and every how many steps a shuffling window ends, a validation comes, dead latents are resampled."""
CUTS = [RESAMPLED + 2, VALIDATED, WINDOW + 2, RESAMPLED, STEPS]
"""Where a run is killed: after latents were resampled, at a validation, inside a shuffling window, at the resampling, at the end."""
WORDS = (
    f"data=cached data.batch_size=32 data.pool_rows={32 * WINDOW} dictionary.expansion_factor=4 dictionary.dead_after=32 "
    f"trainer.max_steps={STEPS} trainer.val_check_interval={VALIDATED} trainer.log_every_n_steps=2 trainer.accelerator=cpu "
    f"callbacks=[default,resample] callbacks.resample.every_n_rows={32 * RESAMPLED} callbacks.resample.times=null "
    f"callbacks.resample.rows=128 {QUIET} "
    "callbacks.feature_density.feature_sampling_window=5 optimizer.lr=3e-3"
)


class Killed(Exception): ...


class KillAfter(L.Callback):
    """When all is done at a step, its checkpoint too."""

    def __init__(self, step: int):
        self.step = step

    def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        trainer.callbacks = [*(other for other in trainer.callbacks if other is not self), self]  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not _validation_follows(trainer):
            raise Killed

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def train(words: str, folder: Path, kill_after: int | None = None):
    from sae_lightning.run.build import build

    run = build(compose(words, folder))
    if kill_after is not None:
        run.trainer.callbacks.append(KillAfter(kill_after))  # type: ignore[attr-defined]
    run.fit()
    return run


def killed_and_resumed(words: str, folder: Path, cut: int):
    shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(Killed):
        train(words, folder, kill_after=cut)
    return train(f"{words} resume={folder}", folder)


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Bitwise."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), f"{path}: differs by {(one - other).abs().max()}"
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}.{i}")
    else:
        assert one == other or one != one, f"{path}: {one} and {other}"


def assert_same_runs(one: Path, other: Path) -> None:
    """All that is in the checkpoints but Lightning's account of its loops; the curves; the exports."""
    for name in ("last", "best"):
        a, b = (torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for folder in (one, other))
        assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks"} <= set(a)
        assert_same({key: a[key] for key in a if key != "loops"}, {key: b[key] for key in b if key != "loops"}, name)
    for name in ("metrics.csv", "sae/sae.json", "sae/sae.safetensors", "sae_best/sae.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = harvest(tmp_path_factory.mktemp("stores"))
    found.ensure()
    return found.path


def words_of(model: str, store: Path, every: int = 1) -> str:
    return f"model={model} {fitting(model)} {WORDS} data.store={store} callbacks.last.every_n_steps={every}"


@pytest.fixture(scope="module", params=MODELS)
def whole(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory):
    """(name, folder of an uninterrupted run), in which latents were resampled; with the L1 penalty none dies so soon."""
    folder = tmp_path_factory.mktemp(request.param)
    train(words_of(request.param, store), folder)
    curves = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    assert sum(float(value) for _, metric, value in curves if metric == "sparsity/resampled") > 0 or knob(request.param) == "sparsity"
    return request.param, folder


@pytest.fixture(scope="module")
def uninterrupted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(words_of("lagrangian", store), folder)
    return folder


def test_a_killed_run_is_the_uninterrupted_one(whole, store: Path, tmp_path: Path) -> None:
    """Of every architecture, each in another place that something special happens at; all of them with one architecture below."""
    name, folder = whole
    killed_and_resumed(words_of(name, store), tmp_path / "run", CUTS[MODELS.index(name) % len(CUTS)])
    assert_same_runs(tmp_path / "run", folder)


# Slow: some twenty trainings of a second.
@pytest.mark.slow
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, STEPS))
@example(cut=CUTS[0])
@example(cut=CUTS[1])
@example(cut=CUTS[2])
@example(cut=CUTS[3])
@example(cut=CUTS[4])
def test_a_run_can_be_killed_anywhere(uninterrupted: Path, store: Path, tmp_path: Path, cut: int) -> None:
    killed_and_resumed(words_of("lagrangian", store), tmp_path / "run", cut)
    assert_same_runs(tmp_path / "run", uninterrupted)


def test_steps_behind_the_last_checkpoint_are_done_again(whole, store: Path, tmp_path: Path) -> None:
    """Killed five steps behind it, after two lines of the curves that are written anew."""
    name, folder = whole
    killed_and_resumed(words_of(name, store, every=6), tmp_path / "run", 17)
    assert_same_runs(tmp_path / "run", folder)


def test_micro_batches_are_counted(store: Path, tmp_path: Path) -> None:
    words = (
        f"{words_of('lagrangian', store)} trainer.accumulate_grad_batches=2 trainer.val_check_interval={2 * VALIDATED} trainer.max_steps=12"
    )
    train(words, tmp_path / "whole")
    for cut in (5, VALIDATED):
        killed_and_resumed(words, tmp_path / "run", cut)
        assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_three_kills_are_like_one(uninterrupted: Path, store: Path, tmp_path: Path) -> None:
    words = words_of("lagrangian", store)
    with pytest.raises(Killed):
        train(words, tmp_path / "run", kill_after=5)
    for cut in (6, 13):
        with pytest.raises(Killed):
            train(f"{words} resume={tmp_path / 'run'}", tmp_path / "run", kill_after=cut)
    train(f"{words} resume={tmp_path / 'run'}", tmp_path / "run")
    assert_same_runs(tmp_path / "run", uninterrupted)
