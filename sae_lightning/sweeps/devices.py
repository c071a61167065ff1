"""What there is to run on. `python -m sae_lightning.sweeps.devices` says it."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class GPU(NamedTuple):
    """`name_for_cuda`: what CUDA_VISIBLE_DEVICES calls it."""

    name_for_cuda: str
    name: str
    bytes: int


def visible(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may see, as CUDA_VISIBLE_DEVICES names them; found without starting CUDA."""
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() and name.strip() != "-1"]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def gpus() -> list[GPU]:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [GPU(name, one.name, one.total_memory) for name, one in zip(visible(), found, strict=False)]


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    found = gpus()
    for gpu in found:
        print(f"GPU {gpu.name_for_cuda}  {gpu.name}  {gpu.bytes / 2**30:.0f} GiB")
    print(f"{len(found) or 'no'} GPU{'' if len(found) == 1 else 's'}, {cores()} CPU cores")
    most = len(found) or cores()
    print(f"so many runs at once: python train.py -m … hydra/launcher=processes hydra.launcher.n_jobs={most}")


if __name__ == "__main__":
    main()
