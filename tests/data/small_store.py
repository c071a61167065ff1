"""A store of random rows, written without a transformer."""

from pathlib import Path

import torch

from sae_lightning.data.encoded import encode
from sae_lightning.data.forward import Rows
from sae_lightning.data.manifest import Manifest
from sae_lightning.data.store import Store
from sae_lightning.data.writer import ShardBuffer, StoreWriter

WIDTHS = {"a": 32, "b": 8}
CONTEXT, SEQUENCES = 16, 16


def small_store(folder: Path, dtype: str = "bfloat16", shards: int = 6) -> Store:
    """Shards of 16 sequences of 16 tokens, of which the first gives no row: 240 rows and about 25 kB each, as bfloat16."""
    manifest = Manifest(
        {"made": "for tests"}, WIDTHS, dtype, CONTEXT, [0], shards * SEQUENCES, SEQUENCES, SEQUENCES, dict.fromkeys(WIDTHS, 5.0)
    )
    writer = StoreWriter(folder, manifest)
    draws = torch.Generator().manual_seed(0)
    for i in range(shards):
        ids = torch.randint(1, 50, (SEQUENCES, CONTEXT), generator=draws)
        keep = torch.ones(SEQUENCES, CONTEXT, dtype=torch.bool)
        keep[:, 0] = False
        drawn = {hook: torch.randn(int(keep.sum()), d, generator=draws) for hook, d in WIDTHS.items()}
        norms = {hook: rows.double().norm(dim=1) for hook, rows in drawn.items()}
        buffer = ShardBuffer(manifest, i * SEQUENCES, SEQUENCES)
        buffer.add_(Rows(ids, keep, {hook: encode(rows, dtype) for hook, rows in drawn.items()}, norms, SEQUENCES, 0), None)
        writer.write_shard(i, buffer)
    writer.finish()
    return Store(folder)
