"""What several runs were told, side by side."""

from pathlib import Path

from sae_lightning.run.settings import settings


def record(folder: Path, words: list[str], config: str, model: str) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text("".join(f"- {word}\n" for word in words) or "[]\n")
    (folder / ".hydra/config.yaml").write_text(config)
    (folder / ".hydra/hydra.yaml").write_text(f"hydra: {{runtime: {{choices: {{model: {model}}}}}}}\n")
    return folder


def test_what_one_was_told_is_looked_up_for_all(tmp_path: Path):
    words = ["model.k=8", "optimizer.betas=[0,0.9]", "trainer.log_every_n_steps=5", "paths.outputs=/somewhere"]
    first = record(tmp_path / "a", words, "{seed: 1, model: {k: 8}, optimizer: {lr: 0.001, betas: [0, 0.9]}}", "topk")
    other = record(
        tmp_path / "b", [], "{seed: 2, model: {target_l0: 4}, optimizer: {lr: 0.002, betas: [null, 0.9]}, k: '${now:}'}", "lagrangian"
    )
    one, two, none = settings([first, other, None])
    assert one == {"model": "topk", "optimizer.lr": 0.001, "model.k": 8, "optimizer.betas": "[0, 0.9]", "seed": 1}
    assert two == {"model": "lagrangian", "optimizer.lr": 0.002, "optimizer.betas": "[None, 0.9]", "seed": 2}  # which has no k
    assert list(one)[-1] == "seed"
    assert none == {}


def test_what_cannot_be_read_is_not_told(tmp_path: Path):
    broken = record(tmp_path / "a", ["model.k=8"], "{seed: 1", "topk")
    (broken / ".hydra/hydra.yaml").unlink()
    unknown = record(tmp_path / "b", ["model.k=8", "no word"], "{seed: '${nowhere:1}'}", "topk")
    assert settings([broken, unknown]) == [{}, {"model": "topk"}]
