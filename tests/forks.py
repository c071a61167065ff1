"""Commands in processes that are forked: torch is imported once, for all of them."""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runs import ROOT

fork = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: threads of torch; the child does not use them


def start(target: Callable[..., Any], *args: Any) -> Any:
    """A child that does target(*args). Its `exitcode` is that of a script."""
    process = fork.Process(target=target, args=args)
    process.start()
    return process


def train(words: str, folder: Path, **environment: str) -> Any:
    """A child that does what `python train.py <words>` does, typed in `folder`. What it prints: <folder>/out and <folder>/err."""
    return start(command, words, folder, environment)


def command(words: str, folder: Path, environment: dict[str, str]) -> None:
    """In a child: what `train` says."""
    os.chdir(folder)
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115 (to the end)
    sys.argv = [str(ROOT / "train.py"), *words.split()]
    runpy.run_path(sys.argv[0], run_name="__main__")
