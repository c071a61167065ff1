"""Fetching shards before they are needed, and at once where they are."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

FETCHERS = 4
"""Threads: one connection rarely has all of a network's throughput, and more shards at a time would each arrive later."""


class Fetchers:
    """`fetch` is called with a shard and whether it is needed at once: never twice at a time for the same, and ahead by so many threads.

    The threads end when there is nothing more to fetch, and never keep a process alive. An error of a fetch ahead is raised to whoever
    waits for that shard; where nobody does, it is fetched again when it is needed.
    """

    def __init__(self, fetch: Callable[[int, bool], None], threads: int = FETCHERS):
        self._fetch, self._threads = fetch, threads
        self._lock = threading.Lock()
        self._queue: deque[int] = deque()
        self._running: dict[int, Future[None]] = {}
        self._at_work = 0

    def ahead(self, shards: Sequence[int]) -> None:
        """These next, in this order, and nothing else that was asked for before and has not begun."""
        with self._lock:
            self._queue = deque(shards)
            for _ in range(min(self._threads, len(shards)) - self._at_work):
                self._at_work += 1
                threading.Thread(target=self._work, daemon=True, name="fetcher").start()

    def now(self, shard: int) -> None:
        """Returns when a fetch of this shard has ended: one that runs, or one of this thread. Errors: those of `fetch`."""
        with self._lock:
            running = self._running.get(shard)
            mine = self._begin(shard) if running is None else None
        if mine is not None:
            self._run(shard, mine, True)
        (running or mine).result()  # pyright: ignore[reportOptionalMemberAccess]

    def _begin(self, shard: int) -> "Future[None]":
        self._running[shard] = Future()
        return self._running[shard]

    def _work(self) -> None:
        while True:
            with self._lock:
                shard = next((shard for shard in self._queue if shard not in self._running), None)
                if shard is None:
                    self._at_work -= 1
                    return
                while self._queue.popleft() != shard:  # those before it are being fetched
                    pass
                mine = self._begin(shard)
            self._run(shard, mine, False)

    def _run(self, shard: int, mine: "Future[None]", is_needed: bool) -> None:
        try:
            self._fetch(shard, is_needed)
            mine.set_result(None)
        except BaseException as error:  # raised to whoever waits
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._running[shard]
