"""`wandb sweep` and `wandb agent`, as they are installed, against a server on this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sae_lightning.sweeps.wandb import sweep_file
from tests.runs import ROOT
from tests.sweeps.study import TINY
from tests.sweeps.wandb_server import Server

RUNS = [
    {"model.k": 4, "optimizer.lr": 1e-3},
    {"model.k": 8, "optimizer.lr": 1e-3, "trainer.max_steps": 1_000_000},  # is stopped
    {"model.k": 4000, "optimizer.lr": 1e-3},  # more than there are latents
]


# Slow: agents ask every five seconds what to do.
@pytest.mark.slow
def test_two_agents_share_a_sweep_of_which_one_run_is_stopped_and_one_fails(tmp_path: Path) -> None:
    words = [*TINY.split(), f"paths.outputs={tmp_path}/outputs", "name=of-a-sweep"]
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep_file(words, ROOT / "conf")))
    server = Server(RUNS, stops=[1])
    places = {name: str(tmp_path / name.lower()) for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME")}
    for place in places.values():
        Path(place).mkdir()
    env = (
        os.environ
        | places
        | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online",
            "WANDB_DISABLE_CODE": "true",
            "OMP_NUM_THREADS": "1",
        }
    )
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    wandb = [sys.executable, "-m", "wandb"]
    try:
        made = subprocess.run([*wandb, "sweep", "--project", "sae", file], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert re.search(r"wandb agent \S+", made.stdout + made.stderr), made.stderr
        with open(tmp_path / "agent0.log", "w") as first, open(tmp_path / "agent1.log", "w") as second:
            command = [*wandb, "agent", "me/sae/sweep001"]
            agents = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT) for log in (first, second)]
            for agent in agents:
                agent.wait(240)
    finally:
        server.close()
    logs = "\n".join(path.read_text() for path in tmp_path.glob("agent*.log"))
    folders = {path.name: path for path in (tmp_path / "outputs/of-a-sweep").iterdir()}
    assert sorted(folders) == ["run0", "run1"], logs  # the agent's runs name them; what is refused leaves none
    records = {name: json.loads((folder / "run.json").read_text()) for name, folder in folders.items()}
    assert {name: record["status"] for name, record in records.items()} == {"run0": "finished", "run1": "interrupted"}
    assert 0 < records["run1"]["step"] < 1_000_000
    assert (folders["run1"] / "checkpoints/last.ckpt").is_file()
    assert [server.runs[name]["state"] for name in ("run0", "run1", "run2")] == ["finished", "finished", "pending"]
    assert any("val/miracle_distance" in line for line in server.runs["run0"]["history"])
    assert server.unknown == []
