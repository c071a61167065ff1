"""What the module does around an architecture's step."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch.testing import assert_close

from sae_lightning.errors import InputError
from sae_lightning.module import SAEModule
from tests.runs import SMALL, WITH_CALLBACKS, compose, fit


def curves(folder: Path) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.csv").read_text().splitlines()[1:]:
        step, metric, value = line.split(",")
        found.setdefault(metric, {})[int(step)] = float(value)
    return found


def test_terms_are_logged_weighted_and_plain_and_sum_to_the_loss(tmp_path: Path) -> None:
    fit(f"model=relu model.sparsity=0.5 {WITH_CALLBACKS}", tmp_path)
    logged = curves(tmp_path)
    for step, loss in logged["train/loss"].items():
        assert loss == pytest.approx(logged["loss/reconstruction"][step] + logged["loss/sparsity"][step], rel=1e-5)
        assert logged["loss/reconstruction"][step] == logged["train/reconstruction"][step]
    assert logged["loss/sparsity"][40] == pytest.approx(0.5 * logged["train/sparsity"][40], rel=1e-5)
    assert logged["val/loss"][40] == pytest.approx(logged["val/reconstruction"][40] + logged["val/loss/sparsity"][40], rel=1e-5)
    assert set(logged["val/loss"]) == {20, 40}
    assert set(logged["train/loss"]) == {10, 20, 30, 40}
    assert logged["details/rows"] == {10: 640, 20: 1280, 30: 1920, 40: 2560}


def test_a_number_of_ones_own_is_the_mean_since_the_last_logged_step(tmp_path: Path) -> None:
    """At micro-batch n (from 1) n is given, at every third one its square too, as a tensor with a gradient."""
    from sae_lightning.run.build import build

    class Own(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: SAEModule, batch: object, batch_idx: int) -> None:
            n = batch_idx + 1
            pl_module.log_custom("mine/n", n)
            if n % 3 == 0:
                pl_module.log_custom("mine/square", torch.tensor(float(n), requires_grad=True).square())

    run = build(compose(f"model=topk model.k=4 {WITH_CALLBACKS} trainer.max_steps=20 optimized_metric=mine/n", tmp_path))
    run.trainer.callbacks.append(Own())  # type: ignore[attr-defined]
    run.fit()
    logged = curves(tmp_path)
    assert logged["mine/n"] == {10: 5.5, 20: 15.5}
    assert logged["mine/square"] == {10: (9 + 36 + 81) / 3, 20: (144 + 225 + 324) / 3}
    assert run.objective("mine/n") == 15.5


def test_validation_is_over_all_rows_in_raw_space(tmp_path: Path) -> None:
    run = fit(f"model=topk model.k=4 {WITH_CALLBACKS}", tmp_path)
    x = torch.cat([batch.x for batch in run.data.held_out()]).double()
    sae = run.module.inference()
    error = x - sae(x.float()).double()
    logged = {name: values[40] for name, values in curves(tmp_path).items() if 40 in values}
    assert logged["val/mse"] == pytest.approx(float(error.square().mean()), rel=1e-4)
    variance = (x - x.mean(0)).square().sum()
    assert logged["val/explained_variance"] == pytest.approx(float(1 - error.square().sum() / variance), rel=1e-4)
    assert logged["val/rows"] == 512


@pytest.mark.parametrize(("scale", "wanted"), [("unit", 1.0), ("sqrt_d", 16.0)])
def test_rows_are_scaled_for_training(scale: str, wanted: float, tmp_path: Path) -> None:
    run = fit(
        f"model=topk model.k=4 {SMALL} data.scale={scale} callbacks=none trainer.max_steps=10 trainer.val_check_interval=10", tmp_path
    )
    x = run.module.scaled(run.data.train_batch(0)).x
    assert float(x.square().sum(1).mean()) == pytest.approx(wanted, rel=0.2)


def test_the_dictionary_starts_from_the_middle_of_the_data(tmp_path: Path) -> None:
    from sae_lightning.models.dictionary import geometric_median
    from sae_lightning.run.build import build

    run = build(compose(f"model=topk model.k=4 {SMALL} callbacks=none optimizer.lr=0.0 trainer.max_steps=10", tmp_path))
    run.trainer.fit(run.module, run.data)
    x = run.data.sample(65536, 0).x
    assert_close(run.module.inference().b_dec, geometric_median(x), rtol=1e-3, atol=1e-3)


def test_only_encoders_are_decayed(tmp_path: Path) -> None:
    words = f"model=lagrangian model.target_l0=4 {SMALL} callbacks=none trainer.max_steps=10 optimizer=adamw optimizer.weight_decay=0.3"
    groups = fit(words, tmp_path).trainer.optimizers[0].param_groups
    run = fit(words, tmp_path)
    decayed = [p for group in run.trainer.optimizers[0].param_groups if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decayed] == [id(run.module.sae.dictionary.W_enc)]
    assert sum(len(group["params"]) for group in groups) == len(list(run.module.sae.parameters()))


def test_the_gradient_is_projected_before_it_is_clipped(tmp_path: Path) -> None:
    """Clipped to a norm far below its own, what is stepped along has exactly that norm and no part along the rows."""
    import lightning as L

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            self.module = module

        def on_train_batch_end(self, trainer, module, *_) -> None:
            gradients = [p.grad for p in module.sae.parameters()]
            self.norm = float(torch.stack([g.norm() for g in gradients]).norm())
            d = module.sae.dictionary
            self.along = float((d.W_dec.grad * self.before).sum(1).abs().max())

        def on_train_batch_start(self, trainer, module, *_) -> None:
            self.before = module.sae.dictionary.W_dec.detach().clone()

    from sae_lightning.run.build import build

    run = build(
        compose(
            f"model=topk model.k=4 {SMALL} callbacks=none trainer.max_steps=1 trainer.log_every_n_steps=1 trainer.gradient_clip_val=1e-3",
            tmp_path,
        )
    )
    look = Look()
    run.trainer.callbacks.append(look)
    run.trainer.fit(run.module, run.data)
    assert look.norm == pytest.approx(1e-3, rel=1e-3)
    assert look.along < 1e-7


def test_bf16_mixed_stays_near_fp32_and_keeps_its_state_in_float32(tmp_path: Path) -> None:
    words = f"model=lagrangian model.target_l0=4 {SMALL} callbacks=none trainer.max_steps=60 optimizer.lr=3e-3"
    exact = fit(words, tmp_path / "fp32")
    mixed = fit(f"{words} trainer.precision=bf16-mixed", tmp_path / "bf16")
    for tensor in (*mixed.module.sae.parameters(), *mixed.module.sae.buffers()):
        assert tensor.dtype in (torch.float32, torch.int64)
    x = next(iter(exact.data.held_out())).x
    errors = [float((x - run.module.inference()(x)).square().sum()) for run in (exact, mixed)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
    l0 = [float(run.module.inference().encode(x).l0_per_row().double().mean()) for run in (exact, mixed)]
    assert l0[1] == pytest.approx(l0[0], rel=0.1)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "16-mixed"])
def test_a_precision_that_loses_state_is_refused(precision: str, tmp_path: Path) -> None:
    from sae_lightning.run.build import build

    with pytest.raises(InputError, match=f"trainer.precision={precision} is refused"):
        build(compose(f"trainer.precision={precision}", tmp_path))


def test_overfitting_one_batch_beats_new_rows_by_far(tmp_path: Path) -> None:
    run = fit(f"model=topk model.k=8 {SMALL} callbacks=none trainer.max_steps=150 optimizer.lr=1e-2 repeat_batches=1", tmp_path)
    again, new = run.data.train_batch(0).x, run.data.train_batch(500).x
    sae = run.module.inference()
    assert (again - sae(again)).square().sum() < 0.5 * (new - sae(new)).square().sum()


def test_a_loss_that_is_not_a_number_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step 10: lower optimizer.lr"):
        fit(f"model=relu {SMALL} callbacks=none optimizer=sgd optimizer.lr=1e20 trainer.gradient_clip_val=null", tmp_path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    fit(f"model=topk model.k=4 {WITH_CALLBACKS}", tmp_path / "topk")
    checkpoint = tmp_path / "topk" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match="the checkpoint is of TopK with 64 latents on rows of width 16, this run trains Lagrangian"):
        fit(f"model=lagrangian model.target_l0=4 {WITH_CALLBACKS}", tmp_path / "lagrangian", checkpoint)
    with pytest.raises(InputError, match="this run trains TopK with 128 latents"):
        fit(f"model=topk model.k=4 {WITH_CALLBACKS} dictionary.expansion_factor=8", tmp_path / "larger", checkpoint)
