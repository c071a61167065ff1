"""What the stream benchmark counts and reads."""

import numpy as np
import torch

from benchmarks import stream


def test_rows_are_mixed_like_a_perfect_permutation_of_the_pool() -> None:
    """4096 blocks: rows that follow each other lie as far apart, and no more pairs of a sequence meet in a batch."""
    for pool, batch in ((65_536, 4096), (20_000, 1024)):
        mixed = stream.mixing(4096 * 64, pool, batch, sequence=128, passes=1)
        assert min(mixed) >= 0.99


def test_rows_in_the_order_of_the_store_are_not_mixed() -> None:
    """128 rows of a sequence to each batch: Σ 128·127/2 pairs; neighbours are one row apart."""
    assert stream._near(np.arange(1024), 128, 128) == (1.0, 8 * 128 * 127 / 2)


def test_readers_read_what_is_there(tmp_path, monkeypatch) -> None:
    for name, value in (("D", 16), ("BATCH", 64), ("POOL", 1024), ("SHARD_SEQUENCES", 8), ("DIRECT_BYTES", 1 << 16)):
        monkeypatch.setattr(stream, name, value)
    store = stream.made(tmp_path / "store", 5000, 16, "float16")
    assert store.rows == 5120
    assert len(store.manifest.shards) == 5
    whole = store.read(stream.HOOK, 0, 1024).float()
    with open(stream._files(store.path)[0][0], "rb") as file:
        file.seek(stream._begins(stream._files(store.path)[0][0]))
        torch.testing.assert_close(torch.frombuffer(bytearray(file.read(1024 * 32)), dtype=torch.float16).view(-1, 16).float(), whole)
    del store
    for kind in (stream.Store, stream.Unmapped):
        assert sum(stream.ours(kind, tmp_path / "store")) == 4864  # two sequences are held out
    assert sum(stream.careful(tmp_path / "store")) == 5120
    assert abs(sum(stream.sequential(tmp_path / "store", False)) - 5120) < 50
    stream.forget(tmp_path / "store")
