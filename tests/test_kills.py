"""SIGKILL at random moments: of a harvest, of a training, of the writing of a checkpoint. Nothing is lost, and nothing drifts.

`pytest -rP tests/test_kills.py` prints what was killed, how often, and what was left.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lightning.checkpoint_io import AtomicCheckpointIO
from sae_lightning.files import remove_leftovers
from sae_lightning.run.checkpoints import newest
from tests.data.tiny import RandomText, files, harvest
from tests.forks import command, forks, start
from tests.run.test_resume_exact import assert_same
from tests.runs import QUIET, fit
from tests.transformers.tiny_gpt2 import SENTENCES, save_tiny_gpt2

KILLS = int(os.environ.get("KILLS", "10"))
"""Of each kind; more with KILLS=100 in the environment."""


def killed(work: Callable[[Path], None], root: Path, longest: float, earliest: float = 0.0) -> Iterator[Path]:
    """Begins work(root/0) again and again, and kills it at random moments; yields the folder after each.

    Where it came to its end before, the next one is work(root/1), and so on; at last one is left alone. `longest`: the seconds that it
    takes from its beginning (less where it turns out to take less); `earliest`: the share of them in which nothing is killed.
    """
    chance, number, kills, is_new = random.Random(0), 0, 0, True
    while kills < KILLS:
        began = time.monotonic()
        child = start(work, root / str(number))
        child.join(longest * chance.uniform(earliest, 1))
        if child.exitcode is None:
            child.kill()
            child.join()
            kills, is_new = kills + 1, False
            yield root / str(number)
        else:
            assert child.exitcode == 0
            longest = min(longest, time.monotonic() - began) if is_new else longest
            number, is_new = number + 1, True
    work(root / str(number))


def show(what: str, left: Counter[str]) -> None:
    print(f"{what}: killed {left.total()} times; left {', '.join(f'{number} x {state}' for state, number in left.most_common())}")


def half_written(folder: Path) -> str:
    return " and a half-written file" if list(folder.rglob(".*.tmp")) else ""


class SlowText(RandomText):
    """As fast as a text is for a real transformer: a harvest can be hit."""

    def sequences(self, *args) -> Iterator[list[int]]:
        for sequence in super().sequences(*args):
            time.sleep(0.002)  # 64 of them: 0.13 s
            yield sequence


@forks
def test_a_harvest(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)  # so that shards are written early
    whole = harvest(tmp_path / "whole", exclude_norm_above=1.3).ensure()
    left: Counter[str] = Counter()
    for stores in killed(lambda stores: harvest(stores, text=SlowText(), exclude_norm_above=1.3).ensure(), tmp_path / "killed", 0.3):
        left[f"{len(list(stores.glob('*/shard*')))} of 4 shards{half_written(stores)}"] += 1
    ended = list((tmp_path / "killed").iterdir())
    for stores in ended:
        assert not list(stores.glob("*/.harvesting.json"))
        assert files(stores / whole.path.name) == files(whole.path)
    show(f"harvest ({len(ended)} stores, each byte-equal to an uninterrupted one)", left)


KNOWN = "data.d=16 data.n_directions=64 data.l0=3 data.rows_held_out=512 data.batch_size=64"
LENGTH = (
    "dictionary.expansion_factor=4 trainer.max_steps=60 trainer.val_check_interval=20 trainer.log_every_n_steps=5 trainer.accelerator=cpu "
    f"callbacks.last.every_n_steps=5 {QUIET}"
)
WORDS = (
    f"model=lagrangian model.target_l0=4 {KNOWN} {LENGTH} callbacks=[default,resample] callbacks.resample.steps=[15,30,45,60] callbacks.resample.rows=64 "
    "dictionary.dead_after=400 callbacks.feature_density.feature_sampling_window=100"
)
RESULTS = ("metrics.csv", "sae/sae.safetensors", "sae/sae.json", "sae_best/sae.safetensors", "sae_best/sae.json")
STATE = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "SyntheticDataModule", "global_step")


def go_on(folder: Path) -> None:
    fit(f"{WORDS} resume={folder}", folder)


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def state(folder: Path) -> dict[str, Any]:
    checkpoint = AtomicCheckpointIO().load_checkpoint(folder / "checkpoints" / "last.ckpt")
    return {name: checkpoint[name] for name in STATE}


# Slow: some thirty trainings.
@pytest.mark.slow
@forks
def test_a_training(tmp_path: Path) -> None:
    fit(WORDS, tmp_path / "whole")
    before = time.monotonic()
    fit(WORDS, tmp_path / "again")
    seconds = time.monotonic() - before
    assert results(tmp_path / "again") == results(tmp_path / "whole")
    left: Counter[str] = Counter()
    for folder in killed(go_on, tmp_path / "killed", seconds, earliest=0.3):  # before that, it is built
        point = newest(folder)
        assert point is not None or not list(folder.glob("checkpoints/*.ckpt"))
        left[f"a checkpoint of steps {point.step // 20 * 20} to {min(60, point.step // 20 * 20 + 19)}" if point else "none"] += 1
    ended, expected = list((tmp_path / "killed").iterdir()), state(tmp_path / "whole")
    for folder in ended:
        assert results(folder) == results(tmp_path / "whole")
        assert_same(state(folder), expected)
        assert not list(folder.rglob("*.tmp"))
    show(f"training ({len(ended)} runs, each bitwise the uninterrupted one)", left)


def checkpoint(step: int) -> dict[str, Any]:
    """9 MB, of which every byte says the step."""
    return {"global_step": step, "state_dict": {"W": torch.full((1500, 1500), float(step))}}


def save_many(folder: Path) -> None:
    """Goes on from what is there."""
    os.environ["TMPDIR"] = other_disk(folder.parent)
    step = max([0, *steps_in(folder)])
    while step < 10_000:
        step += 1
        AtomicCheckpointIO().save_checkpoint(checkpoint(step), folder / "last.ckpt", folder / "previous.ckpt")


def steps_in(folder: Path) -> list[int]:
    return [step_in(path) for name in ("last", "previous") if (path := folder / f"{name}.ckpt").exists()]


def step_in(path: Path) -> int:
    """Of a checkpoint that must be whole."""
    read = AtomicCheckpointIO().load_checkpoint(path)
    assert bool((read["state_dict"]["W"] == read["global_step"]).all())
    return read["global_step"]


def other_disk(path: Path) -> str:
    """A folder on another filesystem than `path`, where this machine has one that can be written to."""
    folders = [name for name in ("/dev/shm", "/run/shm", "/tmp", "/var/tmp") if os.access(name, os.W_OK)]
    return next((name for name in folders if Path(name).stat().st_dev != path.stat().st_dev), str(path))


@forks
def test_the_writing_of_a_checkpoint(tmp_path: Path) -> None:
    left: Counter[str] = Counter()
    before = [0]
    (tmp_path / "0").mkdir()
    for folder in islice(killed(save_many, tmp_path, 0.15), KILLS):
        found = steps_in(folder)
        assert found == sorted(found, reverse=True)
        assert max([0, *found]) >= max(before)
        before = found or before
        left[f"{len(found)} whole{half_written(folder)}"] += 1
        remove_leftovers(folder)
        assert {path.name for path in folder.iterdir()} <= {"last.ckpt", "previous.ckpt"}
    assert max(before) > KILLS
    show("writing of a checkpoint (TMPDIR on another disk)", left)


@forks
def test_the_writing_of_a_checkpoint_before_each_call_of_the_system(tmp_path: Path) -> None:
    """What chance hardly hits: the moments between renaming the last one away and renaming the new one in."""
    calls = ("open", "fsync", "replace")
    seen = []
    for fatal in range(20):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        for step in (1, 2):
            AtomicCheckpointIO().save_checkpoint(checkpoint(step), folder / "last.ckpt", folder / "previous.ckpt")
        child = start(save_until_call, folder, calls, fatal)
        child.join()
        found = {path.stem: step_in(path) for path in folder.glob("*.ckpt")}
        if child.exitcode == 0:
            break
        seen.append(found)
    assert seen == [
        {"last": 2, "previous": 1},  # before the file is synced,
        {"last": 2, "previous": 1},  # before the last one becomes the previous one,
        {"previous": 2},  # before the new one becomes the last one,
        {"last": 3, "previous": 2},  # before the folder is opened,
        {"last": 3, "previous": 2},  # before it is synced
    ]


def save_until_call(folder: Path, calls: tuple[str, ...], fatal: int) -> None:
    """Saves step 3, and is killed before call number `fatal`."""
    left = [fatal]

    def deadly(call: Callable) -> Callable:
        def wrapped(*args: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), 9)
            left[0] -= 1
            return call(*args)

        return wrapped

    for name in calls:
        setattr(os, name, deadly(getattr(os, name)))
    AtomicCheckpointIO().save_checkpoint(checkpoint(3), folder / "last.ckpt", folder / "previous.ckpt")


@forks
def test_a_full_disk_ends_a_training_in_one_line(tmp_path: Path) -> None:
    """What the run writes its second checkpoint to is a device that is full. (A small disk can be mounted by root alone.)"""
    run = tmp_path / "run"

    def train() -> None:
        first = AtomicCheckpointIO.save_checkpoint

        def save(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Path, storage_options: Path | None = None) -> None:
            first(self, checkpoint, path, storage_options)
            (path.parent / f".last.ckpt.{os.getpid()}.tmp").symlink_to("/dev/full")

        AtomicCheckpointIO.save_checkpoint = save
        command(f"model.k=4 {KNOWN} {LENGTH} callbacks.best=null hydra.run.dir={run}", tmp_path, {})

    child = start(train)
    child.join()
    said = (tmp_path / "err").read_text()
    assert child.exitcode == 2, said
    assert len(said.splitlines()) == 1
    assert said.startswith("error: the disk is full (")
    assert f"while writing {run / 'checkpoints' / 'last.ckpt'}: free some space" in said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert newest(run) == (run / "checkpoints" / "last.ckpt", 5)
    assert '"failed"' in (run / "run.json").read_text()


# Slow: transformers is imported, and two trainings harvest and train.
@pytest.mark.slow
@forks
def test_two_trainings_started_together_on_a_store_that_is_not_there(tmp_path: Path) -> None:
    save_tiny_gpt2(tmp_path / "gpt2")
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES * 40))
    words = (
        f"model.k=4 {LENGTH} data=text data.text.paths=[{tmp_path / 'text.txt'}] data/transformer=hf data.hook=transformer.h.0 "
        f"data.transformer.name={tmp_path / 'gpt2'} data.context_length=16 data.max_tokens=4096 data.batch_size=64"
    )
    for number, kills in enumerate((0, 1)):  # the second time, the one that harvests is killed, and the other takes over
        stores = tmp_path / f"stores{number}"
        children = [start(fit, f"{words} paths.stores={stores}", tmp_path / f"{number}{name}") for name in "ab"]
        if kills:
            while not (harvesting := list(stores.glob("*/.harvesting.json"))):
                time.sleep(0.001)
            owner = next(child for child in children if f'"pid": {child.pid}' in harvesting[0].read_text())
            owner.kill()
        for child in children:
            child.join()
        assert sorted(child.exitcode for child in children) == [-9, 0][:kills] + [0] * (2 - kills)
        assert len(list(stores.iterdir())) == 1
    saes = [path.read_bytes() for path in sorted(tmp_path.glob("*/sae/sae.safetensors"))]
    assert len(saes) == 3
    assert len(set(saes)) == 1
