"""Other libraries' own trainers, on the same rows, in the environments that `make peers` made."""

import time
from pathlib import Path

import numpy
import torch

from benchmarks.peers.client import ROOT, Peer
from benchmarks.steps.ours import group_sizes
from sae_lightning.data.rows import RowsDataModule
from sae_lightning.errors import InputError
from sae_lightning.inference import InferenceSAE

TOLD = {
    "sae_lens": ("topk", "batch_topk", "matryoshka"),
    "dictionary_learning": ("topk", "batch_topk", "matryoshka", "jumprelu"),
    "sparsify": ("topk",),
    "overcomplete": ("topk", "batch_topk"),
}
"""Architectures of each library that can be told an L0."""
SEARCHED = {"sae_lens": ("relu", "gated", "jumprelu"), "dictionary_learning": ("relu", "gated", "p_anneal"), "overcomplete": ("relu",)}
"""Those with a penalty whose weight is searched."""
FORMS = {("dictionary_learning", "relu"): ("unit norm",)}
"""Beside the form that a library recommends: what it calls `ARCHITECTURE, FORM`."""
HAVE = {library: (*models, *SEARCHED.get(library, ())) for library, models in TOLD.items()}
START, TOLD_WEIGHT = 0.1, 1.0
"""Weight of a penalty: where a search begins, and of what leads to an L0 that was told (dictionary_learning's jumprelu: its default)."""
AT_ONCE = 200
"""Steps whose rows are handed over in one file."""


def check() -> None:
    """Errors: InputError where an environment is missing."""
    missing = [library for library in HAVE if not (ROOT / ".peers" / library / "bin" / "python").exists()]
    if missing:
        raise InputError(f"--peers needs the environments of {', '.join(missing)}: run make peers")


def train(library: str, model: str, data: RowsDataModule, d_sae: int, l0: int, weight: float, lr: float, seed: int, steps: int,
          folder: Path) -> tuple[InferenceSAE, float]:  # fmt: skip
    """What the library's trainer makes of the rows that ours would see, in raw space, and its seconds. Rows of E‖x‖² = 1 go in.

    `weight`: of its penalty, where it has one.

    Warm-up over 5 % and a falling rate over the last 20 %, as ours (sparsify's falls from the warm-up on); all else is the library's own.
    """
    scale, batch = data.scale[0], data.batch_size
    job = {"architecture": model, "d": data.shape.d_in, "latents": d_sae, "batch": batch, "k": l0, "lr": lr, "seed": seed, "steps": steps,
           "groups": group_sizes(d_sae), "sparsity": weight}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    with Peer(library) as peer:
        peer.ask("make", name="sae", job=job)
        for first in range(0, steps, AT_ONCE):
            count = min(AT_ONCE, steps - first)
            rows = torch.cat([data.train_batch(i).x for i in range(first, first + count)]) / scale
            numpy.save(folder / "rows.npy", rows.numpy())
            started = time.perf_counter()
            peer.ask("train", name="sae", rows=str(folder.absolute() / "rows.npy"), batch=batch, first=0, steps=count)
            seconds += time.perf_counter() - started
        weights, about = peer.export("sae")
    s = scale.mean()  # one number for every dimension
    weights |= {name: weights[name] * s for name in ("b_enc", "b_dec", "threshold") if name in weights}
    return InferenceSAE(weights, subtract=about["subtract"], k=about["k"]), seconds
