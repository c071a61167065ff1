"""A grid that is typed again goes on where it stopped; nothing that can be seen before is seen late."""

import json
from pathlib import Path

import pytest

from tests.forks import forks
from tests.sweeps.study import TINY, jobs, said, typed

GRID = f"-m model.k=2,4 seed=0,1 {TINY} sweep.name=s"


@forks
def test_a_grid_that_stopped_goes_on(tmp_path):
    assert typed(f"{GRID} sweep.limit=2", tmp_path) == 0
    folder = tmp_path / "multirun" / "s"
    assert list(jobs(tmp_path)) == ["0-topk-k2-F64-s0", "1-topk-k2-F64-s1"]
    first = folder / "0-topk-k2-F64-s0" / "run.json"
    whole = json.loads(first.read_text())
    first.write_text(json.dumps(whole | {"status": "running"}))  # as if it had been killed
    recorded = {path: path.read_bytes() for path in folder.glob("*/.hydra/*")}
    second = (folder / "1-topk-k2-F64-s1" / "run.json").read_bytes()
    assert typed(GRID, tmp_path) == 0
    assert "3 of 4 jobs are left" in said(tmp_path)
    assert [job["status"] for job in jobs(tmp_path).values()] == ["finished"] * 4
    assert len(jobs(tmp_path)["0-topk-k2-F64-s0"]["before"]) == 1
    assert jobs(tmp_path)["0-topk-k2-F64-s0"]["metrics"] == whole["metrics"]
    assert (folder / "1-topk-k2-F64-s1" / "run.json").read_bytes() == second
    assert {path: path.read_bytes() for path in recorded} == recorded
    assert typed(GRID, tmp_path) == 0
    assert "0 of 4 jobs are left" in said(tmp_path)


@forks
def test_a_job_that_fails_stops_no_other_one(tmp_path):
    words = f"-m model.k=2,65 {TINY} sweep.name=s"  # more than the 64 latents that there are
    assert typed(words, tmp_path) == 2
    assert [job["status"] for job in jobs(tmp_path).values()] == ["finished"]
    assert "1 of 2 jobs failed: 1-topk-k65-F64-s0" in said(tmp_path).splitlines()[-1]
    assert "Traceback" not in said(tmp_path)


@forks
@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("model.k=2,4 seed=0,1 sweep.limit=3", ["0-topk-k2-F64-s0", "1-topk-k2-F64-s1", "2-topk-k4-F64-s0", "3 jobs"]),
        ("sweep=ablation model.k=2,4,8 seed=0,1",
         ["0-topk-k2-F64-s0", "1-topk-k4-F64-s0", "2-topk-k8-F64-s0", "3-topk-k2-F64-s1", "4 jobs"]),
        ("sweep=seeds", [*(f"{i}-topk-k16-F64-s{i}" for i in range(5)), "5 jobs"]),
        ("sweep=seeds seed=7,9", ["0-topk-k16-F64-s7", "1-topk-k16-F64-s9", "2 jobs"]),
        ("hydra/sweeper=optuna", ["model.k: 4 to 64, logarithmic, integers", "optimizer.lr: 0.0001 to 0.01, logarithmic", "fixed:",
                                  "minimize val/miracle_distance", "30 trials; tpe"]),
        ("hydra/sweeper=optuna sweep=pareto", ["model.k", "optimizer.lr", "fixed:", "minimize val/l0", "maximize val/explained_variance",
                                               "30 trials; nsgaii (population=20); none"]),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_would_run_and_leaves_nothing(tmp_path, words, lines):
    assert typed(f"-m {words} sweep.dry_run=true {TINY}", tmp_path) == 0
    printed = said(tmp_path).splitlines()
    assert len(printed) == len(lines)
    for line, begin in zip(printed, lines, strict=True):
        assert line.startswith(begin)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err", "out"]


@forks
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer.lr=interval(1e-4,1e-3)", "a grid has no intervals"),
        ("hydra/sweeper=optuna model=topk,relu", "a search is of one architecture"),
        ("hydra/sweeper=optuna model=pca", "there is nothing to search"),
        ("hydra/sweeper=optuna sweep=pareto sweep.direction=[minimize]", "optimized_metric has 2 names and sweep.direction 1"),
        ("hydra/sweeper=optuna sweep.storage=nonsense", "sweep.storage=nonsense cannot be opened"),
        ("hydra/sweeper=optuna sweep/sampler=grid", "has no single values"),
        ("hydra/sweeper=optuna sweep/space=lagrangian", "model.target_l0 belongs to model=jumprelu"),
        ("seed=0,1 hydra/launcher=processes hydra.launcher.gpus_per_job=64", "hydra.launcher.gpus_per_job=64: there are "),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, words, message):
    assert typed(f"-m {words} {TINY}", tmp_path) == 2
    error = (Path(tmp_path) / "err").read_text()
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.glob("multirun/*/*/run.json"))
