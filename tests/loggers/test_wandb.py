"""Real runs of W&B, offline, read back; and what happens where it cannot be reached, or dies."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import wandb

from sae_lightning.loggers.wandb import WandB
from tests.callbacks.curves import curves
from tests.forks import forks, start
from tests.loggers.offline import Offline, read
from tests.runs import QUIET, SMALL, compose

WORDS = f"model=topk model.k=4 {SMALL} {QUIET} callbacks.last.every_n_steps=20 logger=[csv,wandb] evaluate=reconstruction nulls=false"


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of this machine's W&B: no key, no settings, no files of others, nothing that it remembers of the environment."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()
    yield
    wandb.teardown()


def train(words: str, folder: Path) -> None:
    """As train.py does it."""
    from train import main

    main(compose(words, folder))


def runs(folder: Path) -> list[Offline]:
    """Those in a run's folder, the oldest first."""
    wandb.teardown()  # the last lines of a file are written when its service ends
    return [read(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def test_all_that_is_logged_is_there_and_what_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = "logger.wandb.artifacts=all logger.wandb.watch=all logger.wandb.watch_every_n_steps=10 logger.wandb.tags=[a,b] logger.wandb.notes=mine"
    train(f"{WORDS} {words} seed=3", tmp_path)
    (found,) = runs(tmp_path)
    expected = curves(tmp_path / "metrics.csv")
    there = {(int(row["trainer/global_step"]), name): value for row in found.history for name, value in row.items()}
    assert {key: there[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    assert len({row["trainer/global_step"] for row in found.history if "train/loss" in row}) == sum(
        "train/loss" in row for row in found.history
    )
    assert {"gradients/sae.dictionary.W_enc", "parameters/sae.dictionary.W_enc"} <= {name.split("/_type")[0] for _, name in there}
    assert any(name.startswith("plots/log_feature_density_histogram") for _, name in there)
    assert (found.config["seed"], found.config["model"]["k"], found.config["run"]["status"]) == (3, 4, "finished")
    assert found.summary["scores/sae/l0"] == 4.0
    assert (found.project, found.tags, found.notes, found.exit_code) == ("sae_lightning", ["a", "b"], "mine", 0)
    kinds = {(artifact.type, alias) for artifact in found.artifacts for alias in artifact.aliases}
    assert {("model", "latest"), ("model", "best"), ("checkpoint", "latest"), ("checkpoint", "best"), ("code", "latest")} <= kinds
    exported = next(artifact for artifact in found.artifacts if (artifact.type, artifact.aliases) == ("model", ["latest"]))
    assert exported.metadata["architecture"] == "topk"
    assert {"sae.json", "sae.safetensors"} <= exported.files
    code = next(artifact for artifact in found.artifacts if artifact.type == "code")
    assert {"train.py", "conf/train.yaml", "sae_lightning/module.py"} <= code.files
    assert not any(name.startswith(("tests/", "stores/", ".")) for name in code.files)


def test_a_resumed_run_is_the_same_run_and_the_next_one_in_this_process_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(f"{WORDS} trainer.max_steps=20", tmp_path / "one")
    train(f"{WORDS} trainer.max_steps=40 resume={tmp_path / 'one'}", tmp_path / "one")
    train(f"{WORDS} trainer.max_steps=20", tmp_path / "two")
    first, second = runs(tmp_path / "one")
    (other,) = runs(tmp_path / "two")
    assert first.id == second.id == (tmp_path / "one/wandb_id").read_text().strip() != other.id
    assert max(row["trainer/global_step"] for row in second.history) == 40
    assert WandB(save_dir=str(tmp_path / "one"))._wandb_init["resume"] == "allow"


def test_without_a_key_there_is_a_warning_and_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(f"{WORDS} trainer.max_steps=20 logger.wandb.init_timeout=2", tmp_path)
    said = [record.getMessage() for record in caplog.records if "W&B" in record.getMessage()]
    assert len(said) == 1
    assert "W&B cannot be reached" in said[0]
    assert "files are written offline, for `wandb sync" in said[0]
    assert len(runs(tmp_path)) == 1


# Slow: W&B waits for its server twice as long as it is told to.
@pytest.mark.slow
def test_without_a_network_too(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        train(f"{WORDS} trainer.max_steps=20 logger.wandb.init_timeout=2", tmp_path)
    assert sum("W&B cannot be reached" in record.getMessage() for record in caplog.records) == 1
    assert len(runs(tmp_path)) == 1


def train_and_kill(folder: Path) -> None:
    """In a child: after step 15 W&B's service is gone. What is said of it: <folder>/said."""
    import lightning as L

    from sae_lightning.callbacks.learning_rate import LearningRate

    def kill_wandb(self: LearningRate, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == 15:
            mine = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name() or "gpu_stats" in child.name()]
            assert mine
            for child in mine:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.5)

    os.environ["WANDB_MODE"] = "offline"
    LearningRate.on_train_batch_end = kill_wandb  # type: ignore[method-assign]
    logging.getLogger("sae_lightning").addHandler(logging.FileHandler(folder / "said"))
    train(WORDS, folder)
    os._exit(0)  # W&B's own last words are a traceback


@forks
def test_a_service_that_dies_in_the_middle_stops_no_training(tmp_path: Path) -> None:
    child = start(train_and_kill, tmp_path)
    child.join(120)
    assert child.exitcode == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) == 1
    assert "W&B failed" in said[0]
    assert "this run goes on without it" in said[0]
    assert (40, "val/loss") in curves(tmp_path / "metrics.csv")
    assert (tmp_path / "sae/sae.json").exists()


@pytest.mark.parametrize("variable", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}])
def test_the_environment_switches_it_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: dict[str, str]) -> None:
    for name, value in variable.items():
        monkeypatch.setenv(name, value)
    train(f"{WORDS} trainer.max_steps=20", tmp_path)
    assert runs(tmp_path) == []
    assert (20, "val/loss") in curves(tmp_path / "metrics.csv")


def test_the_runs_of_a_sweep_are_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "multirun/mine/0-topk").mkdir(parents=True)
    (tmp_path / "multirun/mine/multirun.yaml").touch()
    assert settings(tmp_path / "multirun/mine/0-topk")["group"] == "mine"
    assert settings(tmp_path / "alone")["group"] is None
    monkeypatch.setenv("WANDB_RUN_GROUP", "other")
    assert settings(tmp_path / "multirun/mine/0-topk")["group"] == "other"
    assert settings(tmp_path / "multirun/mine/0-topk", group="own")["group"] == "own"


def test_the_environment_names_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(tmp_path)["project"] == "sae_lightning"
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert settings(tmp_path)["project"] == "ours"
    assert settings(tmp_path, project="mine", entity="me")["project"] == "mine"


def test_a_run_of_an_agent_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert settings(tmp_path)["id"] == "abc123"


def settings(folder: Path, **more) -> dict:
    return WandB(save_dir=str(folder), mode="offline", **more)._wandb_init
