"""A small house of its own: a script, its conf/ (with the real conf/hydra) and a package of targets, in a temporary folder."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
from sae_lightning.run.entry import entry

@entry("train")
def main(cfg):
    import pathlib, sys
    from hydra.core.hydra_config import HydraConfig
    from sae_lightning.errors import InputError
    folder = pathlib.Path(HydraConfig.get().runtime.output_dir)
    print("RAN", folder, HydraConfig.get().run.dir, "torch" in sys.modules, flush=True)
    if cfg.fate == "refused":
        try:
            raise InputError("the data is\\n  too short")
        except InputError as error:
            raise RuntimeError("wrapped") from error
    if cfg.fate == "refused late":
        (folder / "last.ckpt").write_text("")
        raise InputError("the disk is full")
    if cfg.fate == "broken":
        raise KeyError("a bug")
    return 1.0

if __name__ == "__main__":
    main()
"""

CONF = {
    "train": """
        defaults:
          - _self_
          - data: synthetic
          - model: topk
          - optimizer: adam
          - callbacks: default
          - logger: csv
          - trainer: default
          - optional strategy: null
          - paths: default
          - experiment: null
          - override hydra/output: unique
          - override hydra/help: train
          - override hydra/job_logging: run
        seed: 0
        compile: false
        ckpt_path: null
        fate: fine
        sweep: {name: null}
    """,
    "model/topk": "{_target_: sae_lightning.models.topk.TopK, k: 32, revival: {_target_: sae_lightning.models.auxk.AuxK}}",
    "model/lagrangian": "{_target_: sae_lightning.models.lagrangian.Lagrangian, target_l0: 32, rho: 0.1}",
    "data/synthetic": "{d: 128, batch_size: 1024}",
    "data/sampled": """
        defaults: [{transformer: tiny}]
        batch_size: 1024
        hooks: ${.transformer.hooks}
    """,
    "data/cached": "{batch_size: 1024, store: '???'}",
    "data/transformer/tiny": "hooks: [model.layers.2]",
    "optimizer/adam": "{_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-3, betas: [0.9, 0.999]}",
    "callbacks/default": "{lr: {_target_: lightning.pytorch.callbacks.LearningRateMonitor, logging_interval: step}}",
    "logger/csv": "{csv: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${hydra:runtime.output_dir}'}}",
    "logger/wandb": "{wandb: {_target_: lightning.pytorch.loggers.WandbLogger, name: '${run_name:}'}}",
    "logger/none": "{}",
    "trainer/default": """
        _target_: lightning.Trainer
        max_steps: 10
        devices: auto
        strategy: auto
        precision: 32-true
        gradient_clip_val: 1.0
    """,
    "strategy/ddp": """
        # @package trainer
        strategy: {_target_: lightning.pytorch.strategies.DDPStrategy, broadcast_buffers: false}
    """,
    "data/broken": "batch_size: [1024",
    "paths/default": "{outputs: outputs, multirun: multirun}",
    "experiment/sweep": """
        # @package _global_
        hydra: {sweeper: {params: {seed: "0,x"}}}
    """,
    "experiment/seven": """
        # @package _global_
        defaults: [{override /model: lagrangian}]
        model: {target_l0: 7}
    """,
}


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float

    @property
    def folder(self) -> Path:
        """Of the first job."""
        return Path(next(line for line in self.out.splitlines() if line.startswith("RAN ")).split()[1])


class House(NamedTuple):
    root: Path

    @property
    def conf(self) -> Path:
        return self.root / "conf"

    def run(self, *words: str, script: str = "train.py", **environment: str) -> Ran:
        """The script as a user starts it, in a folder of its own."""
        cwd = self.root / f"work{len(list(self.root.iterdir()))}"
        cwd.mkdir()
        begun = time.monotonic()
        env = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        done = subprocess.run([sys.executable, self.root / script, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)

    def left(self) -> list[Path]:
        """What the last run left in its folder."""
        last = max((path for path in self.root.iterdir() if path.name.startswith("work")), key=lambda path: int(path.name[4:]))
        return sorted(last.iterdir())


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    root = tmp_path_factory.mktemp("house")
    (root / "train.py").write_text(SCRIPT)
    for name, text in CONF.items():
        path = root / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines) + "\n")
    shutil.copytree(ROOT / "conf" / "hydra", root / "conf" / "hydra")
    return House(root)
