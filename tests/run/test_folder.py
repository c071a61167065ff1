import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sae_lightning.errors import InputError
from sae_lightning.run.folder import beside_database, existing, log_file, rank, recorded_config, remove_traces, run_id, run_name


def config(model: str, settings: dict, **more):
    choices = {"model": model, "dictionary": more.pop("dictionary_name", "autoencoder")}
    return OmegaConf.create({"model": settings, "seed": 0, "hydra": {"runtime": {"choices": choices}}} | more)


@pytest.mark.parametrize(
    ("cfg", "name"),
    [
        (config("lagrangian", {"target_l0": 16}, dictionary={"d_sae": 1024, "expansion_factor": None}), "lagrangian-L0_16-F1024-s0"),
        (config("lagrangian", {"target_l0": 0.5}, dictionary={"d_sae": None, "expansion_factor": 8}), "lagrangian-L0_0.5-x8-s0"),
        (config("topk", {"k": 12}, dictionary={"d_sae": None, "expansion_factor": 8.0}, data={"d": 128}), "topk-k12-F1024-s0"),
        (config("relu", {"sparsity": 1e-3}, dictionary_name="transcoder"), "relu-transcoder-l1_0.001-s0"),
        (config("pca", {"k": 5, "_target_": "sae_lightning.models.null.pca.PCA"}, dictionary={"d_sae": 1024}), "pca-k5-s0"),
        (config("topk", {"k": "${nowhere}"}, dictionary={"d_sae": "???", "expansion_factor": 2.5}), "topk-x2.5-s0"),
    ],
)
def test_names(cfg, name):
    assert run_name(cfg) == name


def test_ids_differ_unless_ranks_belong_together():
    alone = {run_id({}) for _ in range(50)}
    assert len(alone) == 50
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[a-z0-9]{4}", name) for name in alone)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_PROCID": "3"}
    assert run_id(slurm) == run_id(slurm | {"SLURM_PROCID": "4"}) != run_id(slurm | {"SLURM_STEP_ID": "1"})
    assert run_id(slurm | {"SLURM_NTASKS": "1"}) != run_id(slurm | {"SLURM_NTASKS": "1"})  # two runs one after the other in one allocation
    elastic = {"TORCHELASTIC_RUN_ID": "abc", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert run_id(elastic) == run_id(elastic | {"RANK": "3"}) != run_id(elastic | {"TORCHELASTIC_RUN_ID": "abd"})
    with pytest.raises(InputError, match="--rdzv-id"):
        run_id(elastic | {"TORCHELASTIC_RUN_ID": "none"})


def test_children_of_one_torchrun_share_an_id_without_a_name():
    """A shell in torchrun's place: its two children have it as their parent, those of another shell have not."""
    code = "import os; from sae_lightning.run.folder import run_id; print(run_id(os.environ))"
    env = os.environ | {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

    def launch() -> list[str]:
        shell = f"'{sys.executable}' -c '{code}'; '{sys.executable}' -c '{code}'; true"
        return subprocess.run(["sh", "-c", shell], env=env, capture_output=True, text=True, check=True).stdout.split()

    (a, b), (c, d) = launch(), launch()
    assert a == b != c == d


def test_rank_and_log_file():
    assert rank({}) == 0
    assert rank({"LOCAL_RANK": "1"}) == 1
    assert rank({"RANK": "5", "LOCAL_RANK": "1"}) == 5
    assert rank({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}) == 2
    assert rank({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "LOCAL_RANK": "1"}) == 1
    assert (log_file("a", 0), log_file("a", 2)) == ("a/training.log", "a/training.rank2.log")


def test_files_of_mlflow_lie_beside_its_database():
    assert beside_database("sqlite:////runs/a/mlflow.db") == "/runs/a/mlflow"
    assert beside_database("sqlite:///runs/a/mlflow.db") == str(Path.cwd() / "runs/a/mlflow")
    assert [beside_database(uri) for uri in ("http://mlflow:5000", "databricks", None)] == [None] * 3


def run_folder(root: Path) -> Path:
    folder = root / "outputs" / "name" / "id"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "training.log").write_text("")
    return folder


def test_traces_go_up_to_what_was_there(tmp_path):
    folder = run_folder(tmp_path)
    remove_traces(folder, [tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_a_neighbour_and_a_result_stay(tmp_path):
    folder = run_folder(tmp_path)
    (folder.parent / "other").mkdir()
    remove_traces(folder, [tmp_path])
    assert [path.name for path in folder.parent.iterdir()] == ["other"]
    folder = run_folder(tmp_path)
    (folder / "metrics.csv").write_text("")
    remove_traces(folder, [tmp_path])
    assert folder.exists()


def test_a_folder_to_keep_is_kept(tmp_path):
    folder = run_folder(tmp_path)
    remove_traces(folder, [folder])
    assert folder.exists()


def test_where_one_cannot_write(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        existing(tmp_path / "file" / "b")


def test_a_recorded_configuration_is_judged_again(tmp_path):
    with pytest.raises(InputError, match="not the folder of a run"):
        recorded_config(tmp_path)
    path = tmp_path / ".hydra" / "config.yaml"
    path.parent.mkdir()
    path.write_text("model: {_target_: sae_lightning.models.topk.TopK, k: 3}\nlog: '${hydra:runtime.output_dir}/x'\n")
    assert recorded_config(tmp_path).model.k == 3
    for text, expected in {
        "model: {_target_: os.system, command: ls}": "model._target_ is os.system",
        "model: {_target_: sae_lightning.models.topk.TopK, k: [1]}": "model.k must be an integer",
        "a: [": "cannot be read",
        "- a": "no configuration",
        "a: !!python/object/apply:os.getcwd []": "cannot be read",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(expected)):
            recorded_config(tmp_path)
