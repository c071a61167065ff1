"""Which sweeper a trial belongs to, and whether that sweeper has died."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sae_lightning.run.launch import started


class Owner(NamedTuple):
    """One process, the same one on no two machines, in no two containers, and in no two of its lives.

    `place`: where `pid` means something: a boot of a kernel and a PID namespace; empty where the system does not say. `since`: when the
    process started. `job`, `attempt`: of Slurm, which begins one job several times; empty and 0 outside of it.
    """

    host: str
    place: str
    pid: int
    since: str
    job: str
    attempt: int

    def text(self) -> str:
        return ":".join(map(str, self))


def this_process(environment: Mapping[str, str] = os.environ) -> Owner:
    pid = os.getpid()
    job = environment.get("SLURM_JOB_ID", "")
    job = f"{environment.get('SLURM_CLUSTER_NAME', '')}/{job}" if job else ""
    return Owner(platform.node(), _place(), pid, started(pid), job, int(environment.get("SLURM_RESTART_COUNT") or 0))


def has_died(text: str, me: Owner) -> bool | None:
    """Whether the process has ended that `text` names; None where that cannot be seen from here.

    Slurm begins a job again only when its processes are gone: they are those of an earlier attempt.
    """
    try:
        host, place, pid, since, job, attempt = text.split(":")
        other = Owner(host, place, int(pid), since, job, int(attempt))
    except ValueError:
        return None
    if other.job and other.job == me.job and other.attempt < me.attempt:
        return True
    if other.place and (other.host, other.place) == (me.host, me.place):
        return started(other.pid) != other.since
    return None


def _place() -> str:
    """Two containers on a machine have the same kernel, often the same host name, and both a process 1."""
    try:
        boot, namespace = Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.blake2b(f"{boot}{namespace}".encode(), digest_size=6).hexdigest()
