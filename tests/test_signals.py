"""Signals to commands: what is left, and the exit code."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sae_lightning.errors import Interrupted
from sae_lightning.signals import StopRequest, leaving_at_once, leaving_tidily
from tests.data.tiny import files, harvest
from tests.forks import forks, start, train
from tests.runs import ROOT, WITH_CALLBACKS
from tests.test_kills import SlowText

ENDLESS = f"model.k=4 {WITH_CALLBACKS} trainer.max_steps=1000000"


def wait_for(found: Callable[[], object], process) -> None:
    """Until something is there. A process that ends before that has failed."""
    deadline = time.monotonic() + 120
    while not found():
        assert (process.poll() if hasattr(process, "poll") else process.exitcode) is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("outputs/*/*/checkpoints/previous.ckpt"))


def check_interrupted(folder: Path) -> int:
    """What an interrupted run leaves, and what it does not; returns its step."""
    run = checkpoints(folder)[0].parents[1]
    step = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["rows_seen"]) == ("interrupted", step * 64)
    logged = [int(line.split(",")[0]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert logged[-1] == step // 10 * 10
    assert f"after step {step} of 1000000" in (run / "training.log").read_text()
    left = {path.name for path in run.iterdir()}
    assert left == {".hydra", "checkpoints", "metrics.csv", "run.json", "sae_best", "training.log", "plots"} & left
    assert not list(run.rglob("*.tmp"))
    return step


@pytest.mark.parametrize(
    ("number", "code", "environment"),
    [
        (signal.SIGUSR1, 143, {}),
        (signal.SIGINT, 130, {}),
        (signal.SIGTERM, 0, {"WANDB_SWEEP_ID": "x"}),
    ],
    ids=["SIGUSR1", "SIGINT", "SIGTERM of a W&B agent"],
)
@forks
def test_a_signal_ends_a_training_with_a_checkpoint(tmp_path: Path, number, code, environment) -> None:
    process = train(ENDLESS, tmp_path, **environment)
    wait_for(lambda: checkpoints(tmp_path), process)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert (tmp_path / "err").read_text().strip() == f"{number.name}: stops after this step, with a checkpoint; once more to leave at once"
    check_interrupted(tmp_path)


# Slow: a process that imports torch.
@pytest.mark.slow
def test_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *ENDLESS.split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: checkpoints(tmp_path), process)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    step = check_interrupted(tmp_path)
    assert said.splitlines()[-1] == f"stopped by SIGTERM after step {step} of 1000000"


# Slow: three processes that import torch.
@pytest.mark.slow
def test_of_two_ranks_one_gets_the_signal_and_both_stop_at_one_step(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *ENDLESS.split(), "strategy=ddp", "trainer.devices=2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(lambda: checkpoints(tmp_path), process)
        process.terminate()
        said, _ = process.communicate(timeout=60)  # until both have closed it
    assert process.returncode == 143
    assert check_interrupted(tmp_path) % 10 == 0
    assert "Traceback" not in said


@forks
def test_a_signal_ends_a_harvest_at_once_and_it_goes_on_later(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)
    whole = harvest(tmp_path / "whole").ensure()
    source, chance = harvest(tmp_path / "stopped", text=SlowText()), random.Random(0)

    def work() -> None:
        with leaving_at_once():
            source.ensure()

    codes = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        process = start(work)
        wait_for(lambda: (source.path / ".harvesting.json").exists(), process)
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, number)
        process.join(60)
        codes.append(process.exitcode)
        assert not list(source.path.glob("*.tmp"))
        assert not (source.path / ".harvesting.json").exists()
    assert codes == [143, 130, 143, 143]
    assert files(harvest(tmp_path / "stopped").ensure().path) == files(whole.path)


def test_a_scheduler_and_a_parent_send_one_wish():
    wish = StopRequest()
    wish.begin_(says=False)
    try:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert wish.number == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        wish.end_()


def test_what_follows_a_signal_is_not_cut_off_by_the_next_one():
    def work() -> None:
        with leaving_tidily():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                for number in (signal.SIGTERM, signal.SIGUSR1):
                    os.kill(os.getpid(), number)
                    sent.append(number)

    sent: list[int] = []
    with pytest.raises(Interrupted):
        work()
    assert len(sent) == 2
