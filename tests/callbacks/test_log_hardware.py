"""Numbers of the machine, and what is left of a run that is out of memory."""

from pathlib import Path

import psutil
import pytest
import torch

from sae_lightning.callbacks.log_hardware import LogHardware, is_out_of_memory, measured
from sae_lightning.data.synthetic import SyntheticDataModule
from sae_lightning.errors import InputError
from sae_lightning.loggers.csv import CSV
from tests.callbacks.curves import curves


def test_the_numbers_are_those_of_this_machine(small_run, tmp_path: Path) -> None:
    logger = CSV(str(tmp_path / "metrics.csv"))
    small_run([LogHardware()], steps=10, loggers=[logger], enable_checkpointing=False)
    logger.save()
    logged = {name.removeprefix("hardware/"): value for (step, name), value in curves(tmp_path / "metrics.csv").items() if step == 10}
    own = psutil.Process().memory_info().rss / 1e9
    assert own / 2 < logged["process_ram_gb"] < 2 * own
    assert logged["process_ram_gb"] < logged["ram_gb"] <= psutil.virtual_memory().total / 1e9
    assert 0 <= logged["cpu_pct"] <= 100
    assert 0 < logged["ram_pct"] <= 100
    assert logged["disk_free_gb"] == pytest.approx(psutil.disk_usage(str(tmp_path)).free / 1e9, rel=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_of_a_gpu(tmp_path: Path) -> None:
    kept = torch.ones(2**28, device="cuda")
    found = measured(kept.device, tmp_path)
    assert found["gpu_memory_gb"] >= found["gpu_memory_peak_gb"] >= 4 * 2**28 / 1e9
    assert found["gpu_memory_pct"] == pytest.approx(
        1e11 * found["gpu_memory_gb"] / torch.cuda.get_device_properties(0).total_memory, rel=0.1
    )


class Greedy(SyntheticDataModule):
    """Its fourth batch would take a petabyte."""

    def train_batch(self, index, rank=0, ranks=1):
        return super().train_batch(index, rank, ranks) if index < 3 else torch.empty(2**48)


def test_a_run_out_of_memory_says_what_holds_how_much_and_what_to_change(small_run, tmp_path: Path) -> None:
    logger = CSV(str(tmp_path / "metrics.csv"))
    data = Greedy(d=16, n_directions=32, l0=2.0, batch_size=32, rows_held_out=128)
    with pytest.raises(InputError, match=r"out of memory at step 3, .*out_of_memory.txt.*lower data.batch_size"):
        small_run([LogHardware()], loggers=[logger], data=data, enable_checkpointing=False)
    table = (tmp_path / "out_of_memory.txt").read_text()
    assert table.startswith("step 3: ")
    for line in ("0.0 MB  parameter sae.dictionary.W_enc [48, 16]", "exp_avg of sae.dictionary.W_enc [48, 16]", "gradient of "):
        assert line in table
    assert curves(tmp_path / "metrics.csv")[3, "hardware/out_of_memory"] == 1.0  # on the disk already


def test_other_errors_are_none() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_period_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"log_hardware\.every_n_steps is 0"):
        LogHardware(every_n_steps=0)
