"""What every architecture owes, over every yaml in conf/model: a new one is under contract at once."""

import math
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from sae_lightning.load import load_sae
from tests.architectures import KNOBS, MODELS, fitting, knob
from tests.runs import SMALL, WITH_CALLBACKS, fit


def words(model: str) -> str:
    return f"model={model} {fitting(model)} {WITH_CALLBACKS}"


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(name, a run that ended)."""
    return request.param, fit(words(request.param), tmp_path_factory.mktemp(request.param))


def test_it_learns(trained) -> None:
    name, run = trained
    curves = [line.split(",") for line in (run.folder / "metrics.csv").read_text().splitlines()[1:]]
    losses = [float(value) for step, metric, value in curves if metric == "val/reconstruction"]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0], name


def test_every_parameter_gets_a_gradient(trained) -> None:
    _, run = trained
    sae = run.module.sae.train()
    batch = run.module.scaled(run.data.train_batch(0))
    sae.zero_grad()
    sae.step(*batch).loss.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_its_state_is_float32_or_int64(trained) -> None:
    _, run = trained
    for name, buffer in run.module.sae.named_buffers():
        assert buffer.dtype in (torch.float32, torch.int64), name


def test_what_is_exported_is_what_was_trained(trained) -> None:
    _, run = trained
    exported, batch = load_sae(run.folder / "sae"), next(iter(run.data.held_out()))
    module = run.module.eval()
    with torch.no_grad():
        step = module.raw(module.sae.step(*module.scaled(batch)))
        inference = module.inference()
        latents = inference.encode(batch.x)
        assert_close(inference.reconstruct(batch.x, latents), step.reconstruction, rtol=1e-4, atol=1e-4)
        assert_close(latents.dense(), step.latents.dense(), rtol=1e-4, atol=1e-4)
        assert_close(exported(batch.x), module.export()(batch.x), rtol=0, atol=0)
    if not module.sae.export_rows():  # nothing is set on held-out rows: it is the same
        assert_close(dict(exported.named_buffers()), dict(inference.named_buffers()), rtol=0, atol=0)


def test_in_evaluation_a_row_is_on_its_own(trained) -> None:
    _, run = trained
    sae, batch = run.module.sae.eval(), run.module.scaled(next(iter(run.data.held_out())))
    with torch.no_grad():
        together = sae.step(*batch).latents.dense()[:8]
        alone = torch.cat([sae.step(x[None], x[None]).latents.dense() for x in batch.x[:8]])
    assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_the_knob_moves_l0_the_right_way(trained, tmp_path: Path) -> None:
    name, _ = trained
    parameter = knob(name)
    found = []
    for value in KNOBS[parameter]:
        seldom = "callbacks=none trainer.max_steps=100 trainer.val_check_interval=100 trainer.log_every_n_steps=100"
        run = fit(f"model={name} {SMALL} {seldom} model.{parameter}={value} optimizer.lr=3e-3", tmp_path / str(value))
        batch = next(iter(run.data.held_out()))
        found.append(float(run.module.export().encode(batch.x).l0_per_row().double().mean()))
    assert found == sorted(found), (KNOBS[parameter], found)
    assert found[-1] > 1.5 * found[0]


def test_accumulated_micro_batches_are_one_step(trained, tmp_path: Path) -> None:
    """Two micro-batches make one optimizer step: half as many counts, the same rows."""
    name, _ = trained
    run = fit(
        f"model={name} {SMALL} trainer.accumulate_grad_batches=2 trainer.max_steps=4 trainer.val_check_interval=8 trainer.log_every_n_steps=4 callbacks=none",
        tmp_path,
    )
    assert run.data.batches_trained == 8
    assert int(run.module.step_sums["rows"]) == 2 * run.data.batch_size
    assert int(run.module.sae.dictionary.rows_since_fired.max()) <= 8 * run.data.batch_size


class StopAt(L.Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def test_a_resumed_run_is_the_uninterrupted_one(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, whole = trained
    import sae_lightning.run.build as build

    make = build.build_all
    with monkeypatch.context() as patch:
        patch.setattr(
            build, "build_all", lambda group: make(group) | ({"stop": StopAt(20)} if group is not None and "last" in group else {})
        )
        fit(words(name), tmp_path)
    again = fit(words(name), tmp_path, tmp_path / "checkpoints" / "last.ckpt")
    assert again.trainer.global_step == whole.trainer.global_step == 40
    state = {key: value for key, value in again.module.state_dict().items() if "metrics" not in key}
    assert_close(state, {key: value for key, value in whole.module.state_dict().items() if "metrics" not in key}, rtol=0, atol=0)
