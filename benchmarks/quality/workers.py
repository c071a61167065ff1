"""Jobs on worker processes of one thread each."""

import os
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from benchmarks.quality.plan import Job, Settings, leads, resolved
from benchmarks.quality.results import Results, Row
from sae_lightning.errors import InputError

Report = Callable[[Job, Row | None, str], None]
"""(job, its line or None, what went wrong)."""


class Queue:
    """Jobs in order; one waits for those in its `needs`, and is left out where its line is there or compares nothing."""

    def __init__(self, jobs: list[Job], results: Results):
        self.waiting, self.results = list(jobs), results
        self.running: dict[tuple[Any, ...], Job] = {}
        self.refused: list[tuple[Job, str]] = []

    def next(self) -> Job | None:
        """A job that can begin now, with its learning rate; it counts as running until `finished`."""
        for job in list(self.waiting):
            unfinished = {*self.waiting, *self.running.values()}
            if not unfinished.isdisjoint(job.needs):
                continue
            self.waiting.remove(job)
            if not leads(job, self.results.done):
                continue
            try:
                ready = resolved(job, self.results.done)
            except InputError as error:
                self.refused.append((job, str(error)))
                continue
            if ready.key in self.results.done:
                continue
            self.running[ready.key] = job
            return ready
        return None

    def finished(self, ready: Job) -> None:
        del self.running[ready.key]


def work_off(settings: Settings, queue: Queue, workers: int, context: Any, report: Report) -> None:
    """Does what is in the queue. A job that fails is reported and leaves no line; the others go on."""
    hands: list[tuple[Connection, Any]] = []
    busy: dict[Connection, Job] = {}
    try:
        while True:
            while len(busy) < workers and (job := queue.next()) is not None:
                free = next((connection for connection, _ in hands if connection not in busy), None)
                if free is None:
                    hands.append(_start(settings, context))
                    free = hands[-1][0]
                free.send(job)
                busy[free] = job
            if not busy:
                break
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                job = busy.pop(connection)
                try:
                    row, problem = connection.recv()
                except (EOFError, ConnectionError):
                    raise InputError(f"the process that did «{job}» was killed: start the same command again to go on") from None
                if row is not None:
                    queue.results.append(row)
                queue.finished(job)
                report(job, row, problem)
    finally:
        for connection, process in hands:
            connection.close()
            process.terminate()
            process.join()
    for job, problem in queue.refused:
        report(job, None, problem)


def _start(settings: Settings, context: Any) -> tuple[Connection, Any]:
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(settings, there, os.getpid()), daemon=True)
    process.start()
    there.close()
    return here, process


def _work(settings: Settings, connection: Connection, parent: int) -> None:
    """In a worker: job after job, until the other end is gone."""
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    import torch

    from benchmarks.quality.training import Bench

    torch.set_num_threads(1)
    bench = Bench(settings)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            connection.send((bench.do(job), ""))
        except InputError as error:
            connection.send((None, str(error)))
        except Exception:
            connection.send((None, traceback.format_exc()))


def _die_with(parent: int) -> None:
    """Nobody is left to work for when the parent is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
