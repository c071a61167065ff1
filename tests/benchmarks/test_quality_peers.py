"""Other libraries in the quality benchmark: which jobs they get, and what is said where they are not installed."""

from pathlib import Path

import pytest

from benchmarks.quality import peers
from benchmarks.quality.__main__ import read
from benchmarks.quality.plan import OURS, PAIRED, Settings, plan
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
    }  # fmt: skip
    assert sorted((job.lr, job.seed) for job in theirs if (job.library, job.model) == ("sparsify", "topk") and job.lr) == [
        (1e-3, 0),
        (3e-3, 0),
    ]
    for job in theirs:  # a seed takes the learning rate of its own library's grid
        assert {need.library for need in job.needs} == ({job.library} if job.seed else set())
    for job in jobs:
        assert {need.library for need in job.needs} <= {job.library}
    assert [job for job in jobs if job.library == OURS] == plan(settings(tmp_path))
    assert all(model in PAIRED for models in peers.HAVE.values() for model in models)


def test_missing_environments_are_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"sae_lens, dictionary_learning.*run make peers"):
        read(["--peers"])
