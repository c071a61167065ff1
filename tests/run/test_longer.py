"""A resumed run that has become longer: from then on it is what a run of the new length is at that step."""

from pathlib import Path

import pytest

from sae_lightning.errors import InputError
from tests.run.test_resume_exact import Killed, assert_same_runs, train
from tests.runs import SMALL, WITH_CALLBACKS, compose


def curve(folder: Path, metric: str) -> dict[int, float]:
    lines = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return {int(step): float(value) for step, name, value in lines[1:] if name == metric}


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("validated", [True, False])
def test_rates_and_shares_follow_the_new_length(scheduler: str, validated: bool, tmp_path: Path) -> None:
    """Also where the run had come to its end, which one with a validation there saves in another place than one without."""
    end = "" if validated else "callbacks.final_validation=null trainer.val_check_interval=60"
    words = f"model=relu model.warmup=0.5 {WITH_CALLBACKS} scheduler={scheduler} scheduler.warmup=0.1 {end}"
    train(words, tmp_path / "run")
    train(f"{words} trainer.max_steps=120", tmp_path / "whole")
    run = train(f"{words} trainer.max_steps=120 resume={tmp_path / 'run'}", tmp_path / "run")
    assert run.trainer.global_step == 120
    assert int(run.module.sae.warmup_steps) == 60  # type: ignore[arg-type]
    assert int(run.module.sae.dictionary.dead_after) == max(120 * 64 // 20, 20 * 64)
    for metric in ("details/learning_rate", "relu/penalty_weight"):
        resumed, whole = curve(tmp_path / "run", metric), curve(tmp_path / "whole", metric)
        assert resumed.keys() == whole.keys()
        assert {step: value for step, value in resumed.items() if step > 40} == {step: value for step, value in whole.items() if step > 40}


def test_a_run_whose_schedule_knows_no_length_is_the_longer_one(tmp_path: Path) -> None:
    words = f"model=topk model.k=4 {WITH_CALLBACKS} dictionary.dead_after=640 scheduler=constant scheduler.warmup=0 callbacks.feature_density=null"
    train(words, tmp_path / "run")
    train(f"{words} trainer.max_steps=80", tmp_path / "whole")
    train(f"{words} trainer.max_steps=80 resume={tmp_path / 'run'}", tmp_path / "run")
    assert_same_runs(tmp_path / "run", tmp_path / "whole")


def test_it_may_be_made_longer_before_it_has_ended(tmp_path: Path) -> None:
    words = f"model=topk model.k=4 {WITH_CALLBACKS}"
    with pytest.raises(Killed):
        train(words, tmp_path, kill_after=20)
    assert train(f"{words} trainer.max_steps=60 resume={tmp_path}", tmp_path).trainer.global_step == 60
    assert list(curve(tmp_path, "val/loss")) == [20, 40, 60]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trainer.log_every_n_steps=7", r"\(20 steps\) is no multiple of trainer.log_every_n_steps \(7 steps\)"),
        ("callbacks.last.every_n_steps=30", r"callbacks.last.every_n_steps \(30 steps\) is no multiple of trainer.val_check_interval \(20 steps\)"),
        ("trainer.val_check_interval=15", r"trainer.val_check_interval \(15 steps\) is no multiple of trainer.log_every_n_steps \(10 steps\)"),
        ("trainer.accumulate_grad_batches=3", "val_check_interval=20 batches end inside an optimizer step of 3"),
    ],
)  # fmt: skip
def test_intervals_that_do_not_fall_together_are_refused(words: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        compose(f"{WITH_CALLBACKS} {words}", tmp_path)


@pytest.mark.parametrize(
    "words", ["", "callbacks.last.every_n_steps=50", "callbacks=none", "trainer.accumulate_grad_batches=2", "debug=limit"]
)
def test_intervals_that_do_are_not(words: str, tmp_path: Path) -> None:
    """50 is behind the end of this run."""
    compose(f"{SMALL} {words}", tmp_path)
