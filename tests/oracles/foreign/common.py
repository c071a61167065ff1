"""What the scripts beside this one share. They run in other libraries' environments: torch and safetensors only.

    .peers/sae_lens/bin/python -m tests.oracles.foreign.with_sae_lens write FOLDER     # SAEs of the library, one folder each
    .peers/sae_lens/bin/python -m tests.oracles.foreign.with_sae_lens read FOLDER      # SAEs that we wrote for it

Either way FOLDER/<case>/theirs.safetensors is then what the library itself makes of the rows: latents and x_hat, in the dtype of the case.
A case whose name ends with -float64 is in float64 throughout.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

D, D_OUT, F, K, ROWS, SCALE = 8, 6, 32, 4, 24, 3.7
OUT = "theirs.safetensors"
Outputs = tuple[Tensor, Tensor]


def rows(dtype: torch.dtype) -> Tensor:
    """Those of tests.formats.saes."""
    g = torch.Generator().manual_seed(5)
    return (SCALE * (torch.randn(ROWS, D, generator=g) + 0.5)).to(dtype)


@torch.no_grad()
def disturb_(module: nn.Module, seed: int) -> None:
    """Every parameter away from where it starts; thresholds not negative. A decoder keeps its own norms, then those of no constraint."""
    g = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=g).to(parameter.dtype)
        parameter.copy_((0.5 + 3 * noise.abs()) if "threshold" in name else parameter + 0.3 * noise)


def dtype_of(case: str) -> torch.dtype:
    return torch.float64 if case.endswith("-float64") else torch.float32


def put(folder: Path, latents: Tensor, x_hat: Tensor) -> None:
    save_file({"latents": latents.detach().contiguous(), "x_hat": x_hat.detach().contiguous()}, folder / OUT)


def main(write: Callable[[Path, str], None], cases: list[str], read: Callable[[Path, str, Tensor], Outputs]) -> None:
    """write(folder, case) saves an SAE; read(folder, case, rows) loads one with the library and runs it."""
    do, root = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    if do == "write":
        for case in [name + end for name in cases for end in ("", "-float64")]:
            (root / case).mkdir(parents=True, exist_ok=True)
            write(root / case, case)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        with torch.no_grad():
            put(folder, *read(folder, folder.name, rows(dtype_of(folder.name))))


__all__ = ["D_OUT", "D", "F", "K", "disturb_", "dtype_of", "load_file", "main", "rows", "save_file"]
