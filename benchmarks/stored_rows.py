"""What rows lose by how they are stored: Σ‖x − x̂‖² / Σ‖x − x̄‖² of the stored rows x̂ themselves, against the rows of a store.

    python benchmarks/stored_rows.py STORE [STORE …]

An SAE that is trained on x̂ can explain about so much less of x. For int8 it is about (max/rms of a row)² / (12 · 127²) · Σ‖x‖² / Σ‖x − x̄‖².
"""

import sys

import torch

from sae_lightning.data.encoded import DTYPES, encode
from sae_lightning.data.store import Store

ROWS = 131_072


def main(folders: list[str]) -> None:
    for folder in folders:
        store = Store(folder)
        for hook in store.hooks:
            x = store.read(hook, 0, min(store.rows, ROWS)).float().double()
            total = (x - x.mean(0)).square().sum()
            shares = {name: float((encode(x.float(), name).float() - x).square().sum() / total) for name in DTYPES}
            peak = float((x.abs().amax(1) / x.square().mean(1).sqrt()).median())
            print(
                f"{store.path.name}  {hook}  {len(x)} rows of d {x.shape[1]}, stored as {store.manifest.dtype}; max/rms {peak:.1f} (median)"
            )
            print("  " + "  ".join(f"{name} {share:.2e}" for name, share in shares.items()))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(sys.argv[1:])
