"""Numbers move as asked, exactly so after a resume, and what cannot be moved is refused before anything begins."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from sae_lightning.callbacks.schedule import Schedule, movable
from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.load import load_sae
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.lagrangian import Lagrangian
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK
from sae_lightning.module import SAEModule
from tests.run.test_longer import curve
from tests.run.test_resume_exact import assert_same_runs, killed_and_resumed, train
from tests.runs import WITH_CALLBACKS, compose

MAKE = partial(Dictionary, Shape((16,), (16,)), d_sae=48)


class Watch(L.Callback):
    """What the numbers are when a batch is worked on."""

    def __init__(self, *names: str):
        self.names, self.seen = names, []

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.seen.append(tuple(float(getattr(pl_module.sae, name)) for name in self.names))


def test_an_integer_is_rounded_and_used(small_run) -> None:
    watch = Watch("k")
    _, module = small_run([Schedule({"k": {"start": 9, "end": 4}}), watch], steps=4, enable_checkpointing=False)
    assert watch.seen == [(8,), (6,), (5,), (4,)]  # 7.75, 6.5, 5.25, 4: a half goes to the even number
    assert float(module.step_sums["fires"].sum() / module.step_sums["rows"]) <= 4
    assert module.inference().k == 4


def test_several_at_once_and_micro_batches_share_a_value(small_run) -> None:
    watch = Watch("target_l0", "rho")
    schedule = Schedule({"target_l0": {"start": 8, "end": 4, "shape": "stepwise", "levels": 2}, "rho": {"start": 0.5, "warmup": 2}})
    _, module = small_run([schedule, watch], steps=2, accumulate=2, sae=Lagrangian(MAKE, 6.0), enable_checkpointing=False)
    assert watch.seen == [(8, 0.25), (8, 0.25), (4, 0.5), (4, 0.5)]
    assert float(module.sae.target_l0) == 4


def test_calibration_knows_the_first_value(small_run) -> None:
    class First(L.Callback):
        def on_train_start(self, trainer, pl_module: SAEModule) -> None:
            x = pl_module.scaled(pl_module.rows.sample(4096, seed=5)).x
            self.l0 = float(pl_module.sae.step(x, x).latents.l0_per_row().double().mean())
            self.running = float(pl_module.sae.running_l0)

    first = First()
    schedule = Schedule({"target_l0": {"start": 12, "end": 3, "length": 1, "hold": 1}})
    small_run([schedule, first], steps=2, sae=Lagrangian(MAKE, 3.0), enable_checkpointing=False)
    assert first.l0 == pytest.approx(12, rel=0.05)
    assert first.running == 12


def test_the_penalty_of_relu(small_run) -> None:
    """What is moved is the full weight; the architecture's own warm-up goes on with it."""
    _, module = small_run(
        [Schedule({"sparsity": {"start": 0.4, "end": 0.2}})], steps=4, sae=ReLU(MAKE, 0.1, warmup=0), enable_checkpointing=False
    )
    assert float(module.sae.penalty_weight) == pytest.approx(0.2)


def test_a_target_that_was_moved_is_the_one_that_acts() -> None:
    moved, made = Lagrangian(MAKE, 9.0), Lagrangian(MAKE, 4.0)
    moved.load_state_dict(made.state_dict() | {"target_l0": torch.tensor(9.0)})
    moved.target_l0.fill_(4)
    assert moved.calibration_rows() == made.calibration_rows()
    x = torch.randn(256, 16)
    for sae in (moved, made):
        sae.calibrate_(x)
        sae.after_step_({"fires": torch.full((48,), 128), "rows": torch.tensor(256)})
    assert made.dual > 0
    assert moved.step(x, x).loss == made.step(x, x).loss
    torch.testing.assert_close(moved.state_dict(), made.state_dict(), rtol=0, atol=0)


NUMBERS = {
    "topk": "{k:{start:8,end:3}}",
    "lagrangian": "{target_l0:{start:8,end:3,shape:cosine},rho:{start:0.1,end:0.3,warmup:0.25}}",
}


@pytest.mark.parametrize("model", NUMBERS)
def test_a_resumed_run_is_the_uninterrupted_one(model: str, tmp_path: Path) -> None:
    words = f"model={model} {WITH_CALLBACKS} callbacks=[default,schedule] callbacks.schedule.numbers={NUMBERS[model]}"
    train(words, tmp_path / "whole")
    for cut in (20, 40):  # 40: nothing is left to train, what is exported knows the last value
        killed_and_resumed(words, tmp_path / "run", cut)
        assert_same_runs(tmp_path / "run", tmp_path / "whole")
    if model == "topk":
        assert load_sae(tmp_path / "run").k == 3
        assert curve(tmp_path / "run", "topk/k") == {10: 7, 20: 6, 30: 4, 40: 3}  # 6.75, 5.5, 4.25, 3


def test_a_run_that_becomes_longer_moves_as_the_longer_one_does(tmp_path: Path) -> None:
    words = f"model=topk {WITH_CALLBACKS} callbacks=[default,schedule] callbacks.schedule.numbers={NUMBERS['topk']}"
    train(words, tmp_path / "run")
    train(f"{words} trainer.max_steps=80", tmp_path / "whole")
    train(f"{words} trainer.max_steps=80 resume={tmp_path / 'run'}", tmp_path / "run")
    resumed, whole = curve(tmp_path / "run", "topk/k"), curve(tmp_path / "whole", "topk/k")
    assert {step: k for step, k in resumed.items() if step > 40} == {step: k for step, k in whole.items() if step > 40}


def test_what_can_be_moved() -> None:
    assert set(movable(TopK(MAKE, 4))) == {"k"}
    assert {"target_l0", "rho", "dual_max"} <= set(movable(Lagrangian(MAKE, 4)))
    assert not {"inequality", "training"} & set(movable(Lagrangian(MAKE, 4)))
    assert {"sparsity", "penalty_weight"} <= set(movable(ReLU(MAKE, 0.1)))
    assert "steps_done" not in movable(ReLU(MAKE, 0.1))


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ("{kk:{start:8,end:4}}", "numbers.kk: topk has no such number: choose k$"),
        ("{k:{start:32,end:2000}}", "numbers.k: k would become 2000: choose 1 ≤ k ≤ 64"),
        ("{k:{start:8,end:0}}", "numbers.k: k would become 0"),
        ("{k:{start:8,warmup:0.5}}", "numbers.k: k would become 0"),  # begins above its floor of 0
    ],
)
def test_what_cannot_be_moved_is_refused(numbers: str, said: str, tmp_path: Path) -> None:
    """When the run is built: before anything is harvested."""
    from sae_lightning.run.build import build

    cfg = compose(f"model=topk {WITH_CALLBACKS} callbacks=[default,schedule] callbacks.schedule.numbers={numbers}", tmp_path)
    with pytest.raises(InputError, match=said):
        build(cfg)


@pytest.mark.parametrize(("numbers", "said"), [({}, "numbers is empty"), ({"k": {"strat": 8}}, "numbers.k: it is .*: write {start")])
def test_what_says_nothing_is_refused(numbers: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Schedule(numbers)


def test_negative_numbers_are_refused() -> None:
    for sae, name in ((Lagrangian(MAKE, 4), "rho"), (ReLU(MAKE, 0.1), "sparsity")):
        with pytest.raises(InputError, match=f"numbers.{name}: {name} would become -1"):
            Schedule({name: {"start": 1, "end": -1}}).check(sae, 100)
    with pytest.raises(InputError, match="target_l0 would become 48: choose 0 < target_l0 < 48"):
        Schedule({"target_l0": {"start": 48, "end": 4}}).check(Lagrangian(MAKE, 4), 100)


def test_a_sweep_over_where_it_ends(tmp_path: Path) -> None:
    from sae_lightning.run.command import validate
    from tests.runs import _composer

    words = ["callbacks=[default,schedule]", "callbacks.schedule.numbers={k:{start:64}}", "+callbacks.schedule.numbers.k.end=8,16"]
    assert validate(_composer(), words, multirun=True).callbacks.schedule.numbers.k == {"start": 64, "end": 8}
    with pytest.raises(InputError, match=r"callbacks\.schedule\.numbers must be given"):
        validate(_composer(), words[:1])
