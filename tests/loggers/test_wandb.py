from pathlib import Path

import pytest

from sae_lightning.loggers.wandb import WandB


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    ids = [
        WandB(save_dir=str(folder), project="test", offline=True)._wandb_init["id"] for folder in (tmp_path, tmp_path, tmp_path / "other")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert WandB(save_dir=str(tmp_path))._wandb_init["resume"] == "allow"
    assert (tmp_path / "wandb_id").read_text().strip() == ids[0]


def test_the_runs_of_a_sweep_are_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "multirun/mine/0-topk").mkdir(parents=True)
    (tmp_path / "multirun/mine/multirun.yaml").touch()
    assert logger(tmp_path / "multirun/mine/0-topk")["group"] == "mine"
    assert logger(tmp_path / "alone")["group"] is None
    monkeypatch.setenv("WANDB_RUN_GROUP", "other")
    assert logger(tmp_path / "multirun/mine/0-topk")["group"] == "other"


def test_the_environment_names_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logger(tmp_path)["project"] == "sae_lightning"
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    assert logger(tmp_path)["project"] == "ours"


def test_a_run_of_an_agent_is_the_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    assert logger(tmp_path)["id"] == "abc123"


def logger(folder: Path) -> dict:
    return WandB(save_dir=str(folder), offline=True)._wandb_init
