import csv
import os
from pathlib import Path

import pytest
import torch

from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV


def read(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_one_line_per_number_in_the_order_of_logging(tmp_path):
    logger = CSV(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"train/loss": 0.1, "train/l0": torch.tensor(12.0)}, step=10)
    logger.log_metrics({"odd, name": float("nan")}, step=10)
    logger.log_metrics({"val/loss": 1e-12}, step=20)
    logger.save()
    wanted = [
        ["step", "metric", "value"],
        ["10", "train/loss", "0.1"],
        ["10", "train/l0", "12.0"],
        ["10", "odd, name", "nan"],
        ["20", "val/loss", "1e-12"],
    ]
    assert read(tmp_path / "metrics.csv") == wanted


def test_the_file_only_grows(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = CSV(str(path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    inode, before = path.stat().st_ino, path.read_bytes()
    logger.log_metrics({"b": 2.0}, step=2)  # a metric that was not there before
    assert path.read_bytes() == before
    logger.finalize("success")
    assert path.stat().st_ino == inode
    assert path.read_bytes() == before + b"2,b,2.0\n"


@pytest.mark.parametrize("torn", ["", "30,val/l", "30,val/loss,1", "30,val/loss,1.0,\n", "\x00\x00"])
def test_a_run_that_goes_on_drops_what_it_is_about_to_log_again(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    first = CSV(str(path))
    for step in (10, 20, 30, 100):
        first.log_metrics({"a": float(step)}, step=step)
    first.save()
    with path.open("a") as file:
        file.write(torn)
    again = CSV(str(path))
    assert len(read(path)) >= 5  # nothing is touched before something is logged
    again.log_metrics({"a": -20.0}, step=20)
    again.log_metrics({"a": -30.0}, step=30)
    again.save()
    assert read(path) == [["step", "metric", "value"], ["10", "a", "10.0"], ["20", "a", "-20.0"], ["30", "a", "-30.0"]]


def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "metrics.csv").symlink_to("/dev/full")
    logger = CSV(str(tmp_path / "metrics.csv"))
    logger.started = True
    logger.log_metrics({"a": 1.0}, step=1)
    with pytest.raises(InputError, match=r"the disk is full while writing .*metrics\.csv"):
        logger.save()


def test_ranks_above_0_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero.rank_zero_only.rank", 1)
    logger = CSV(str(tmp_path / "metrics.csv"))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    assert os.listdir(tmp_path) == []
