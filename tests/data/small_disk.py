"""Disks that are full or read-only, for real: mounted for a child process and seen by no other."""

import ctypes
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
libc = ctypes.CDLL(None, use_errno=True)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process where it may mount. Skips the test where the system lets nobody do that."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        kind, value = ours.recv()
    finally:
        process.join()
    if kind == "cannot":
        pytest.skip(f"this system does not let a test mount a small disk: {value}")
    if kind == "raised":
        raise AssertionError(f"the child raised {value}")
    return value


def _run(answer: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        _alone()
    except OSError as error:
        answer.send(("cannot", str(error)))
        return
    try:
        answer.send(("returned", function(*arguments)))
    except BaseException as error:
        answer.send(("raised", repr(error)))


def _alone() -> None:
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER)
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    mount("none", Path("/"), MS_REC | MS_PRIVATE)


def small(folder: Path, size: int) -> None:
    """Mounts an empty disk of `size` bytes (rounded up to pages) on a new `folder`."""
    folder.mkdir()
    mount("tmpfs", folder, 0, f"size={size}")


def read_only(folder: Path) -> None:
    """Lets nothing be written below `folder`."""
    mount(str(folder), folder, MS_BIND)
    mount(str(folder), folder, MS_BIND | MS_REMOUNT | MS_RDONLY)


def mount(source: str, target: Path, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), str(target).encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode())


def _call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
