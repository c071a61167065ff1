from pathlib import Path

from sae_lightning.loggers.wandb import WandB


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    ids = [
        WandB(save_dir=str(folder), project="test", offline=True)._wandb_init["id"] for folder in (tmp_path, tmp_path, tmp_path / "other")
    ]
    assert ids[0] == ids[1] != ids[2]
    assert WandB(save_dir=str(tmp_path))._wandb_init["resume"] == "allow"
    assert (tmp_path / "wandb_id").read_text().strip() == ids[0]
