"""What happens to a store: bad disks, full disks, folders of somebody else. One clear line each, and nothing is lost."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from sae_lightning.data.command import main
from sae_lightning.data.parts import split
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError
from tests.data import small_disk
from tests.data.tiny import HOOKS, RandomText, files, harvest

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: threads of torch; children do not use them


def flip(path: Path, at: int) -> None:
    """One bit, as a bad disk does: size and times stay."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(path: Path, at: int) -> None:
    os.truncate(path, path.stat().st_size + at)


def remove(path: Path, _: int) -> None:
    path.unlink()


def unreadable(path: Path, _: int) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("shard-00001.safetensors", flip, "is altered (its checksum is not that of the manifest)"),
        ("statistics.safetensors", flip, "is altered (its checksum is not that of the manifest)"),
        ("shard-00002.safetensors", truncate, "is truncated or altered"),
        ("shard-00003.safetensors", remove, "is missing"),
        ("statistics.safetensors", remove, "is missing"),
        ("statistics.safetensors", unreadable, "cannot be read (Is a directory)"),
    ],
)
def test_verify_names_the_file_that_is_wrong(copy, capsys, name, spoil, message):
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}: 5 files are as the manifest says\n"
    spoil(copy / name, -1)
    assert main(["verify", str(copy)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{copy / name} {message}")


def test_verify_names_every_file_that_is_wrong_wherever_the_bit_is(copy, capsys):
    for i, at in enumerate((0, 200, -1)):
        flip(copy / f"shard-0000{i}.safetensors", at)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"complete": False, "sequences": 80}))
    assert main(["verify", str(copy)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == [*(str(copy / f"shard-0000{i}.safetensors") for i in range(3)), str(copy)]
    assert "is incomplete: 4 of 5 shards" in lines[-1]


@pytest.mark.parametrize("command", [["info"], ["verify"], ["split", "--parts", "2", "--to", "no"], ["merge", "--to", "no"]])
def test_a_newer_schema_is_one_line(copy, made, capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    content = (copy / "manifest.json").read_text().replace('"schema": 2', '"schema": 9')
    (copy / "manifest.json").write_text(content)
    paths = [str(made.path), str(copy)] if command[0] == "merge" else [str(copy)]
    assert main([command[0], *paths, *command[1:]]) == 2
    assert capsys.readouterr().err == (f"error: {copy} has schema version 9, this package reads up to 2: update sae_lightning to read it\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert (copy / "manifest.json").read_text() == content


def test_an_older_schema_is_read_and_stays(copy):
    content = (copy / "manifest.json").read_text().replace('"schema": 2', '"schema": 1')
    (copy / "manifest.json").write_text(content)
    assert Store(copy).rows == 960
    assert (copy / "manifest.json").read_text() == content


def test_a_spoilt_store_is_neither_joined_nor_cut(copy, tmp_path):
    os.utime(copy / "shard-00002.safetensors")
    flip(copy / "shard-00002.safetensors", -1)
    with pytest.raises(InputError, match=r"shard-00002.safetensors is altered"):
        split(copy, 2, tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_store_in_a_read_only_folder_is_read(made, copy):
    (copy / ".verified.json").unlink()  # what was checked cannot be written down either

    def work():
        small_disk.read_only(copy)
        with pytest.raises(OSError, match="Read-only"):
            (copy / "file").touch()
        store = Store(copy)
        return store.rows_at(HOOKS[0], torch.tensor([3, 700])).tolist(), main(["verify", str(copy)]), main(["info", str(copy)])

    rows, *status = small_disk.in_child(work)
    assert status == [0, 0]
    torch.testing.assert_close(torch.tensor(rows), made.rows_at(HOOKS[0], torch.tensor([3, 700])), rtol=0, atol=0)


def test_nothing_is_made_in_a_read_only_folder(made, tmp_path):
    stores = tmp_path / "stores"
    begun = harvest(stores, seed=1)
    begun.path.mkdir(parents=True)

    def work():
        small_disk.read_only(stores)
        for source in (begun, harvest(stores, seed=2)):
            with pytest.raises(InputError, match=r"cannot write into .* \(Read-only file system\): set paths.stores to a folder of yours"):
                source.ensure()
        with pytest.raises(InputError, match=r"cannot write .*parts \(Read-only file system\): give a folder of yours with --to"):
            split(made.path, 2, stores / "parts")
        return True

    assert small_disk.in_child(work)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "other", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(disk).free == 0


def test_a_disk_that_fills_up_in_a_harvest_keeps_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)  # so that shards are written early
    whole = harvest(tmp_path / "whole").ensure()
    disk = tmp_path / "disk"

    class Filling(RandomText):
        def sequences(self, *arguments):
            for i, sequence in enumerate(super().sequences(*arguments)):
                if i == 40:  # in the third shard
                    fill(disk)
                yield sequence

    def work():
        small_disk.small(disk, 1_000_000)
        with pytest.raises(InputError, match=r"the disk is full .0 MB free. while writing .*: free some space and start again") as error:
            harvest(disk / "stores", text=Filling()).ensure()
        assert "\n" not in str(error.value)
        path = harvest(disk / "stores").path
        kept = sorted(file.name for file in path.iterdir() if not file.name.startswith("."))
        times = {name: (path / name).stat().st_mtime_ns for name in kept if name.startswith("shard")}
        (disk / "other").unlink()
        store = harvest(disk / "stores").ensure()
        return kept, times == {name: (path / name).stat().st_mtime_ns for name in times}, files(store.path) == files(whole.path)

    kept, untouched, equal = small_disk.in_child(work)
    assert kept == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]
    assert untouched and equal


@pytest.mark.parametrize("missing", [1, 100_000])
def test_a_disk_that_is_too_small_for_parts_gets_none(made, tmp_path, missing):
    disk = tmp_path / "disk"
    needed = sum(shard.bytes for shard in made.manifest.shards)

    def work():
        small_disk.small(disk, needed - missing + 1)  # with 1: enough for the bytes, not for their pages
        with pytest.raises(InputError, match=r"the disk of .* is full: free some space|the shards need \d+ MB on that disk") as error:
            split(made.path, 2, disk / "parts")
        return str(error.value), list(disk.iterdir()), shutil.disk_usage(disk).used

    message, left, used = small_disk.in_child(work)
    assert "\n" not in message
    assert ("is full" in message) == (missing == 1)
    assert (left, used) == ([], 0)
    assert main(["verify", str(made.path)]) == 0
