"""sparsify writes, and reads, the folders of its sparse coders."""
# pyright: reportMissingImports=false

import os
from pathlib import Path

import torch
from torch import Tensor

os.environ.setdefault("WANDB_MODE", "disabled")

from sparsify import SparseCoder, SparseCoderConfig

from tests.oracles.foreign.common import D, F, K, Outputs, disturb_, dtype_of, main

CASES = {
    "topk": {},
    "skip": {"skip_connection": True},
    "transcode": {"transcode": True},
    "transcode-skip": {"transcode": True, "skip_connection": True},
    "expansion": {"num_latents": 0, "expansion_factor": 3},
}


def write(folder: Path, case: str) -> None:
    words = {"num_latents": F, "k": K, **CASES[case.removesuffix("-float64")]}
    coder = SparseCoder(D, SparseCoderConfig(**words), dtype=dtype_of(case))
    disturb_(coder, len(case))
    coder.save_to_disk(folder)


def read(folder: Path, case: str, x: Tensor) -> Outputs:
    coder = SparseCoder.load_from_disk(folder)
    assert coder.dtype == x.dtype, case
    found = coder(x)
    return torch.zeros(len(x), coder.num_latents, dtype=x.dtype).scatter(1, found.latent_indices, found.latent_acts), found.sae_out


if __name__ == "__main__":
    main(write, list(CASES), read)
