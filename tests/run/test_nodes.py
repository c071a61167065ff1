"""Trainings over two nodes of one process each, in the variables of torchrun; and docs/train.sbatch."""

import importlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from sae_lightning.load import load_sae
from sae_lightning.run.checkpoints import newest
from tests.callbacks.curves import curves
from tests.forks import forks, train
from tests.runs import QUIET, ROOT, WITH_CALLBACKS, fit
from tests.test_signals import checkpoints, wait_for
from tests.transformers.tiny_gpt2 import SENTENCES, save_tiny_gpt2

TEXT = (
    "data=text data/transformer=hf data.hooks=[transformer.h.0] data.context_length=16 data.max_tokens=4096 data.batch_size=64 "
    f"evaluate=reconstruction nulls=false model.k=4 trainer.max_steps=20 trainer.val_check_interval=10 trainer.log_every_n_steps=10 "
    f"trainer.accelerator=cpu callbacks.last.every_n_steps=10 dictionary.expansion_factor=4 {QUIET}"
)
TWO = "strategy=ddp trainer.num_nodes=2"


def launch(words: str, folder: Path, name: str) -> list[Any]:
    """What `torchrun --nnodes 2 --nproc-per-node 1 --rdzv-id=name train.py words` starts on two machines that share a disk."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    same = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": name, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    return [train(f"{words} {TWO}", folder, RANK=str(node), GROUP_RANK=str(node), LOCAL_RANK="0", **same) for node in range(2)]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Once, for all that are forked."""
    for name in (
        "sae_lightning.run.build",
        "sae_lightning.run.finish",
        "sae_lightning.data.harvest",
        "transformers.models.gpt2.modeling_gpt2",
    ):
        importlib.import_module(name)


# Slow: a transformer is harvested, by one of two processes that train.
@pytest.mark.slow
@forks
def test_two_nodes_share_a_harvest_and_leave_the_run_of_one_process(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path / "gpt2")
    (tmp_path / "a.txt").write_text(" . ".join(SENTENCES * 60))
    words = f"{TEXT} data.text.paths=[{tmp_path}/a.txt] data.transformer.name={tmp_path}/gpt2 paths.stores={tmp_path}/stores"
    for process in (nodes := launch(words, tmp_path, "a")):
        process.join(120)
    assert [process.exitcode for process in nodes] == [0, 0], (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().count("harvesting transformer.h.0") == 1
    (two,) = tmp_path.glob("outputs/*/*")
    assert two.name.startswith("job_")
    one = fit(words, tmp_path / "one").folder
    expected, found = curves(one / "metrics.csv"), curves(two / "metrics.csv")
    assert found.keys() == expected.keys()
    assert (two / "metrics.csv").read_text().count("\n20,val/mse,") == 1
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert_close(dict(load_sae(two / "sae").named_buffers()), dict(load_sae(one / "sae").named_buffers()), rtol=1e-3, atol=1e-4)


# Slow: two processes train.
@pytest.mark.slow
@forks
def test_a_node_that_dies_ends_the_others_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    first, second = launch(f"model.k=4 {WITH_CALLBACKS} trainer.max_steps=1000000", tmp_path, "a")
    wait_for(lambda: checkpoints(tmp_path), first)
    os.kill(second.pid, signal.SIGKILL)
    for process in (first, second):
        process.join(60)
    assert first.exitcode == 1
    (run,) = tmp_path.glob("outputs/*/*")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert newest(run) is not None


SRUN = '#!/bin/bash\nprintf "%s\\n" "$@" > "$FOLDER/typed"\nexit ${CODE:-0}\n'
SCONTROL = '#!/bin/bash\necho "$@" >> "$FOLDER/scontrol"\n'


def submitted(folder: Path, *words: str, code: int = 0) -> list[str]:
    """What docs/train.sbatch hands to srun, in the variables of a job."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "FOLDER": str(folder), "CODE": str(code)}
    environment = os.environ | job | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    done = subprocess.run(["bash", ROOT / "docs/train.sbatch", *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return (folder / "typed").read_text().splitlines()


def test_a_job_begins_a_run_or_goes_on_with_it(tmp_path: Path) -> None:
    words = ["outputs/mine", "model=relu", "data.store=a b"]
    always = ["strategy=ddp", "trainer.devices=2", "trainer.num_nodes=2", "model=relu", "data.store=a b"]
    assert submitted(tmp_path, *words)[-6:] == ["hydra.run.dir=outputs/mine", *always]
    assert not (tmp_path / "scontrol").exists()
    (tmp_path / "outputs/mine/.hydra").mkdir(parents=True)
    (tmp_path / "outputs/mine/.hydra/overrides.yaml").touch()
    assert submitted(tmp_path, *words, code=143)[-6:] == ["resume=outputs/mine", *always]
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
