import os
import pickle
from pathlib import Path

import pytest
import torch

from sae_lightning.checkpoint_io import AtomicCheckpointIO
from sae_lightning.errors import InputError


def checkpoint(value: float, size: int = 100) -> dict:
    return {"global_step": 3, "state_dict": {"W": torch.full((size, size), value)}, "callbacks": {"best": {"value": float("inf")}}}


def test_round_trip(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint(checkpoint(1.0), path)
    io.save_checkpoint(checkpoint(2.0), path)
    torch.testing.assert_close(io.load_checkpoint(path)["state_dict"]["W"], torch.full((100, 100), 2.0))
    assert io.load_checkpoint(path)["callbacks"] == {"best": {"value": float("inf")}}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    io.remove_checkpoint(path)
    io.remove_checkpoint(path)
    assert not path.exists()


@pytest.mark.parametrize("size", [1, 2000])  # smaller and larger than the file's buffer
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, size):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1.0), path)
    (tmp_path / f".last.ckpt.{os.getpid()}.tmp").symlink_to("/dev/full")  # what is written there meets a full disk
    with pytest.raises(InputError, match=f"the disk is full .* while writing {path}") as caught:
        io.save_checkpoint(checkpoint(2.0, size), path)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(io.load_checkpoint(path)["state_dict"]["W"], torch.full((100, 100), 1.0))


def test_the_one_before_is_kept(tmp_path):
    io, path, previous = AtomicCheckpointIO(), tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for i in range(4):
        io.save_checkpoint(checkpoint(float(i)), path, previous)
        steps = [float(io.load_checkpoint(file)["state_dict"]["W"][0, 0]) for file in (path, previous) if file.exists()]
        assert steps == [i, i - 1][: i + 1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["TOUCHED"]),)


def test_nothing_is_executed(tmp_path, monkeypatch):
    monkeypatch.setenv("TOUCHED", str(tmp_path / "touched"))
    torch.save({"state_dict": Malicious()}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"evil\.ckpt cannot be read as a checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "cut", "pickle", "text"])
def test_what_is_no_checkpoint_is_one_line(tmp_path, damage):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        content = {"empty": b"", "cut": whole[: len(whole) // 2], "pickle": pickle.dumps({"a": 1}), "text": b"epoch: 0"}
        path.write_bytes(content[damage])
    with pytest.raises(InputError, match=str(path)) as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(caught.value)
