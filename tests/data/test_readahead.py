"""Asking for rows before they are read."""

import mmap

import numpy as np
import torch

from sae_lightning.data import readahead
from sae_lightning.data.order import Stretches
from sae_lightning.data.readahead import Readahead


def test_what_is_asked_for_are_the_pages_of_the_rows(monkeypatch):
    asked = []
    monkeypatch.setattr(readahead, "_advise", lambda: lambda *ranges: asked.append(ranges))
    shards = [[torch.zeros(n, 500, dtype=torch.float16) for n in (30, 50)], [torch.zeros(n, 7) for n in (30, 50)]]
    ahead = Readahead(shards, np.array([0, 30, 80]))
    assert [advice for _, _, advice in asked] == [mmap.MADV_RANDOM] * 2
    asked.clear()
    ahead.ask(Stretches(np.array([3, 30, 70]), np.array([5, 1, 10])))
    ahead._thread.shutdown()
    for (begin, length, advice), (first, second), size in zip(asked, shards, (1000, 28), strict=True):
        assert advice == mmap.MADV_WILLNEED
        assert (begin % mmap.PAGESIZE == 0).all()
        rows = [(first.data_ptr() + 3 * size, 5), (second.data_ptr(), 1), (second.data_ptr() + 40 * size, 10)]
        for at, (address, n) in enumerate(rows):
            assert address - mmap.PAGESIZE < begin[at] <= address
            assert begin[at] + length[at] == address + n * size


def test_the_system_takes_what_is_asked(tmp_path):
    """Of a file that is mapped; its rows stay what they are."""
    rows = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    rows.tofile(tmp_path / "rows")
    mapped = torch.from_numpy(np.memmap(tmp_path / "rows", dtype=np.float32, mode="c").reshape(rows.shape))
    ahead = Readahead([[mapped]], np.array([0, 4096]))
    ahead.ask(Stretches(np.arange(0, 4096, 128), np.full(32, 64)))
    ahead._thread.shutdown()
    assert torch.equal(mapped, torch.from_numpy(rows))


def test_without_rows_that_are_mapped_nothing_is_asked_for():
    Readahead([], np.array([0, 10])).ask(Stretches(np.array([0]), np.array([10])))
