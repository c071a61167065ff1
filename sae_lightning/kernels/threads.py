"""Gives the parts of a loop to as many threads as PyTorch may use."""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

PARTS_PER_THREAD = 4
_pools: dict[int, ThreadPoolExecutor] = {}


def share(n: int, work: Callable[[int, int], object]) -> None:
    """Calls work(first, last) for parts that make up 0:n. `work` must let the GIL go and write to places of its own."""
    threads = torch.get_num_threads()
    if threads == 1 or n < 2 * threads:
        work(0, n)
        return
    parts = PARTS_PER_THREAD * threads
    counter = itertools.count()  # `next` of it is atomic

    def take() -> None:
        while (part := next(counter)) < parts:
            work(part * n // parts, (part + 1) * n // parts)

    others = [_pool().submit(take) for _ in range(threads - 1)]
    take()
    for other in others:
        other.result()


def _pool() -> ThreadPoolExecutor:
    """One for this process: threads do not survive a fork."""
    if os.getpid() not in _pools:
        _pools.clear()
        _pools[os.getpid()] = ThreadPoolExecutor(thread_name_prefix="sae_lightning")
    return _pools[os.getpid()]
