"""A pool of windows on a GPU: rows are permuted and made float32 there."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sae_lightning.data.encoded import Encoded
from sae_lightning.data.gather import PooledRows, Target
from sae_lightning.data.order import Stretches
from sae_lightning.data.stored import StoredRows


class DevicePool(PooledRows):
    """Windows are put together in pinned memory and copied as a whole, on a stream of its own, beside the training step.

    Pinned memory comes from PyTorch's allocator, which hands it out again once the copies from it are done.
    """

    def __init__(self, store: StoredRows, hooks: Sequence[str], slots: int, slot_rows: int, device: torch.device):
        super().__init__(store, hooks, slots, slot_rows, device)
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # the pool is memory of that one

    def _copy_(self, hook: str, rows: Stretches, into: Encoded) -> None:
        scale = None if into.scale is None else torch.empty_like(into.scale, device="cpu", pin_memory=True)
        staged = Encoded(torch.empty_like(into.values, device="cpu", pin_memory=True), scale)
        super()._copy_(hook, rows, staged)
        with torch.cuda.stream(self._stream):
            into.values.copy_(staged.values, non_blocking=True)
            if into.scale is not None and staged.scale is not None:
                into.scale.copy_(staged.scale, non_blocking=True)

    def gather_(self, places: Int64[np.ndarray, " n"], targets: Sequence[Target]) -> None:
        with torch.cuda.stream(self._stream):
            index = torch.from_numpy(places).pin_memory().to(self._stream.device, non_blocking=True)
            for pool, (rows, column) in zip(self._pool, targets, strict=True):
                taken = pool.at(index).float()
                rows[:, column : column + taken.shape[1]] = taken

    def empty(self, n: int, d: int) -> Float32[Tensor, "n d"]:
        with torch.cuda.stream(self._stream):
            return torch.empty(n, d, device=self._stream.device)

    def handed_out(self, batches: list[Tensor]) -> list[Tensor]:
        """What the stream that is current now does next comes after the rows are there, and before their memory is used again."""
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for batch in batches:
            batch.record_stream(current)
        return batches
