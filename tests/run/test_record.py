import json
import subprocess

import pytest
from torch import nn

from sae_lightning.run.record import Progress, end_record, git_state, recording, start_record


@pytest.fixture
def module() -> nn.Module:
    """3·2 + 2 parameters, of which the bias is frozen."""
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    return nn.Sequential(layer)


def read(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_run_is_recorded_from_its_beginning(tmp_path, module):
    with recording(tmp_path, seed=3, module=module, progress=lambda: Progress(4, 4, 4096)):
        before = read(tmp_path)
        assert (before["status"], before["duration_s"], before["rows_seen"]) == ("running", None, None)
    after = read(tmp_path)
    assert (after["status"], after["rows_seen"], after["seed"]) == ("finished", 4096, 3)
    assert after["duration_s"] >= 0
    assert after["parameters"] == {"total": 8, "trainable": 6}
    assert after["shapes"] == {"0.weight": [2, 3], "0.bias": [2]}
    assert "Linear(in_features=3, out_features=2, bias=True)" in "\n".join(after["module"])
    assert after["versions"]["hydra-core"].startswith("1.3")
    assert set(after["hardware"]) == {"cpu", "cores", "torch_threads", "memory_bytes", "gpus"}


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "failed"), (KeyboardInterrupt, "interrupted"), (SystemExit, "interrupted")])
def test_how_it_ended(tmp_path, module, error, status):
    with pytest.raises(error), recording(tmp_path, seed=0, module=module, progress=lambda: Progress(1, 4, 1)):
        raise error
    assert read(tmp_path)["status"] == status


def test_a_run_that_stopped_before_its_last_step_is_not_finished(tmp_path, module):
    with recording(tmp_path, seed=0, module=module, progress=lambda: Progress(3, 4, 30)):
        pass
    assert [read(tmp_path)[key] for key in ("status", "step", "rows_seen")] == ["interrupted", 3, 30]


def test_a_resumed_run_remembers_its_parts(tmp_path, module):
    start_record(tmp_path, seed=0, module=module)
    end_record(tmp_path, status="interrupted", progress=Progress(1, 4, 10))
    start_record(tmp_path, seed=0, module=module)
    start_record(tmp_path, seed=0, module=module)
    assert [part["status"] for part in read(tmp_path)["before"]] == ["interrupted", "running"]


def test_only_rank_0_writes(tmp_path, module, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with recording(tmp_path, seed=0, module=module, progress=lambda: Progress(1, 4, 1)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_that_of_the_package(tmp_path):
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    assert git_state(package) is None
    git("init", "-q")
    (package / "a.py").write_text("")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    assert git_state(package) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (package / "a.py").write_text("x")
    assert git_state(package)["dirty"] is True
    inner = package / "site-packages" / "package"  # installed somewhere below another project's checkout
    inner.mkdir(parents=True)
    assert git_state(inner) is None
