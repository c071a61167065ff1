"""Other libraries in the quality benchmark: which jobs they get, and what is said where they are not installed."""

import math
from pathlib import Path

import pytest

from benchmarks.quality import peers
from benchmarks.quality.__main__ import read
from benchmarks.quality.plan import OURS, PAIRED, PENALISED, Settings, plan
from benchmarks.quality.results import FIELDS, KEY, Results
from benchmarks.quality.workers import Queue
from sae_lightning.errors import InputError


def settings(tmp_path: Path, **more: object) -> Settings:
    plain = Settings(
        tmp_path, ("topk", "batch_topk", "relu"), {"synthetic": (12, 8), "stories": (32,)}, {"synthetic": 30, "stories": 10}, seeds=3
    )
    return plain._replace(**more)


def test_every_library_gets_the_grid_and_the_seeds_of_what_it_has(tmp_path: Path) -> None:
    jobs = plan(settings(tmp_path, peers=True))
    theirs = [job for job in jobs if job.library != OURS]
    assert {(job.library, job.model) for job in theirs} == {
        ("sae_lens", "topk"), ("sae_lens", "batch_topk"), ("dictionary_learning", "topk"), ("dictionary_learning", "batch_topk"),
        ("sparsify", "topk"), ("overcomplete", "topk"), ("overcomplete", "batch_topk"),
        ("sae_lens", "relu"), ("dictionary_learning", "relu"), ("overcomplete", "relu"),
    }  # fmt: skip
    assert sorted((job.lr, job.seed) for job in theirs if (job.library, job.model) == ("sparsify", "topk") and job.lr) == [
        (1e-3, 0),
        (3e-3, 0),
    ]
    for job in theirs:  # a seed waits for every library's grid, and a search goes on from the rate before
        others = {other.library for other in theirs if other.model == job.model}
        goes_on = {job.library} if job.is_searched and job.lr == 3e-3 else set()
        assert {need.library for need in job.needs} == (others if job.seed else goes_on)
    for job in jobs:
        assert {need.model for need in job.needs} <= {job.model}
        assert job.library != OURS or {need.library for need in job.needs} <= {OURS}
    alone = plan(settings(tmp_path))
    assert {job for job in jobs if job.library == OURS} - set(alone) == {job for job in jobs if job.seed and job.model == "relu"} - {
        *theirs
    }
    assert {*alone} <= {*jobs}
    assert all(model in (*PAIRED, *PENALISED) for models in peers.HAVE.values() for model in models)
    assert {job.is_searched for job in theirs if job.model == "relu"} == {True}


def test_only_the_best_other_library_is_trained_with_more_seeds(tmp_path: Path) -> None:
    jobs = plan(settings(tmp_path, models=("topk",), peers=True))
    scores = {OURS: 0.9, "sae_lens": 0.7, "dictionary_learning": 0.8, "sparsify": 0.6, "overcomplete": 0.5}
    results = Results(tmp_path / "quality.csv")
    queue, done = Queue(jobs, results), []
    while (job := queue.next()) is not None:
        value = scores[job.library] + (0.01 if job.lr == 3e-3 else 0)
        told = dict(zip(KEY, job.key, strict=True)) | {"l0_validation": job.l0, "explained_variance_validation": value}
        results.append(dict.fromkeys(FIELDS, math.nan) | {"knob": "k", "full_runs": 1} | told)
        queue.finished(job)
        done.append(job)
    assert {job.library for job in done if job.seed == 0 and job.rows == "synthetic"} == {*scores}
    seeds = [(job.library, job.seed, job.lr) for job in done if job.seed]
    assert sorted(seeds) == [(library, seed, 3e-3) for library in ("dictionary_learning", OURS) for seed in (1, 2)]


def test_missing_environments_are_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"sae_lens, dictionary_learning.*run make peers"):
        read(["--peers"])
