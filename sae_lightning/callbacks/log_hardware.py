"""What a run takes of its machine."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sae_lightning.callbacks.frequency import check_period, is_due
from sae_lightning.curves import log_values
from sae_lightning.files import write_text
from sae_lightning.module import SAEModule

GB = 1e9
TABLE = "out_of_memory.txt"


class LogHardware(L.Callback):
    """Of the machine that rank 0 is on, and of its GPU:

        hardware/cpu_pct               of all cores, since it last logged
        hardware/ram_pct, ram_gb       of the machine; process_ram_gb: resident memory of this process
        hardware/disk_free_gb          where the run's folder is
        hardware/gpu_memory_gb, gpu_memory_pct    in use on the GPU, by whomever;  gpu_memory_peak_gb: the most that this process held
        hardware/gpu_utilisation_pct   share of the last second in which a kernel ran; where nvidia-ml-py is installed

    Every `every_n_steps` optimizer steps; None: at those that are logged. When memory runs out, on a GPU or for the CPU, hardware/
    out_of_memory is logged as 1, and <run>/out_of_memory.txt says what held how much. Errors: InputError for a period below 1.
    """

    def __init__(self, every_n_steps: int | None = None):
        self.period = check_period(every_n_steps, "log_hardware")

    def on_train_start(self, trainer: L.Trainer, pl_module: SAEModule) -> None:
        import psutil

        psutil.cpu_percent()  # counts from here on

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: SAEModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.is_global_zero and not pl_module.sums and is_due(self.period, trainer, trainer.global_step):
            values = measured(pl_module.device, trainer.default_root_dir)
            log_values(trainer, {f"hardware/{name}": value for name, value in values.items()}, is_monitored=False)

    def on_exception(self, trainer: L.Trainer, pl_module: SAEModule, exception: BaseException) -> None:
        if not is_out_of_memory(exception):
            return
        log_values(trainer, {"hardware/out_of_memory": 1.0})
        for logger in trainer.loggers:
            logger.save()
        path = Path(trainer.default_root_dir) / TABLE
        write_text(path, f"step {trainer.global_step}: {exception}\n\n{memory_table(pl_module)}\n")


def measured(device: torch.device, folder: str | Path) -> dict[str, float]:
    """By name, without the group."""
    import psutil

    ram = psutil.virtual_memory()
    found = {
        "cpu_pct": psutil.cpu_percent(),
        "ram_pct": ram.percent,
        "ram_gb": (ram.total - ram.available) / GB,
        "process_ram_gb": psutil.Process().memory_info().rss / GB,
        "disk_free_gb": shutil.disk_usage(folder).free / GB,
    }
    if device.type != "cuda":
        return found
    free, total = torch.cuda.mem_get_info(device)
    found |= {"gpu_memory_gb": (total - free) / GB, "gpu_memory_pct": 100 * (1 - free / total)}
    found["gpu_memory_peak_gb"] = torch.cuda.max_memory_allocated(device) / GB
    with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or a driver that does not say
        found["gpu_utilisation_pct"] = float(torch.cuda.utilization(device))
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the CPU, which PyTorch reports as a RuntimeError without a type of its own."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def memory_table(module: SAEModule) -> str:
    """What the GPU's allocator says, where there is one; and the largest tensors that training keeps: parameters, gradients, moments."""
    lines = [torch.cuda.memory_summary(module.device)] if module.device.type == "cuda" else []
    kept = [(f"parameter {name}", tensor) for name, tensor in module.named_parameters()]
    kept += [(f"gradient of {name}", tensor.grad) for name, tensor in module.named_parameters() if tensor.grad is not None]
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    for optimizer in module.trainer.optimizers:
        for parameter, state in optimizer.state.items():
            kept += [(f"{what} of {names[parameter]}", value) for what, value in state.items() if isinstance(value, torch.Tensor)]
    kept.sort(key=lambda pair: -pair[1].nbytes)
    return "\n".join([*lines, *(f"{tensor.nbytes / 1e6:12.1f} MB  {name} {list(tensor.shape)}" for name, tensor in kept)])
