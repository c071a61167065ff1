import json
import os
import struct

import pytest
import torch

from sae_lightning.data.store import ExistingStore, Store
from sae_lightning.errors import InputError
from tests.data.tiny import HOOKS, harvest


@pytest.mark.parametrize(("start", "stop"), [(0, 960), (0, 0), (960, 960), (239, 241), (240, 480), (100, 700), (959, 960)])
def test_contiguous_rows_over_shards(made, start, stop):
    whole = torch.cat([made.read(HOOKS[1], 240 * i, 240 * (i + 1)).float() for i in range(4)])
    torch.testing.assert_close(made.read(HOOKS[1], start, stop).float(), whole[start:stop], rtol=0, atol=0)


def test_rows_outside_are_an_error(made):
    for start, stop in ((0, 961), (-1, 5), (5, 4)):
        with pytest.raises(IndexError):
            made.read(HOOKS[0], start, stop)


def test_scattered_rows_come_in_the_order_asked_for(made):
    whole = made.read(HOOKS[0], 0, made.rows).float()
    rows = torch.randint(0, made.rows, (500,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made.rows_at(HOOKS[0], rows), whole[rows], rtol=0, atol=0)


def test_reading_maps_the_files_and_copies_nothing(made):
    first = made.read(HOOKS[0], 0, 1).values.data_ptr()
    assert made.read(HOOKS[0], 3, 7).values.data_ptr() - first == 3 * 16 * 4  # 3 rows of 16 float32
    assert made.mapped(HOOKS[0])[0].values.data_ptr() == first
    with open("/proc/self/maps") as maps:
        ranges = [(line.split()[0].split("-"), line) for line in maps]
    assert any(int(a, 16) <= first < int(b, 16) and "shard-00000.safetensors" in line for (a, b), line in ranges)


def test_an_altered_shard_is_named(copy):
    path = copy / "shard-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00002.safetensors is altered .*: delete it"):
        Store(copy)


def test_a_truncated_shard_is_named(copy):
    path = copy / "shard-00001.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(InputError, match=r"shard-00001.safetensors is truncated or altered .*: delete it"):
        Store(copy)


@pytest.mark.parametrize("name", ["shard-00003.safetensors", "statistics.safetensors"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        Store(copy)


def test_a_truncated_shard_is_named_by_the_harvest_and_made_again_once_deleted(tmp_path):
    source = harvest(tmp_path)
    path = source.ensure().path / "shard-00001.safetensors"
    content = path.read_bytes()
    os.truncate(path, 100)
    with pytest.raises(InputError, match="delete it"):
        source.ensure()
    path.unlink()
    source.ensure()
    assert path.read_bytes() == content


def test_checksums_are_computed_once_for_a_file_that_does_not_change(made, copy, monkeypatch):
    import sae_lightning.data.store as module

    computed = []
    monkeypatch.setattr(module, "checksum", lambda path, real=module.checksum: computed.append(path.name) or real(path))
    Store(copy)
    assert computed == []  # the harvest remembers what it wrote
    os.utime(copy / "shard-00000.safetensors")
    Store(copy)
    Store(copy)
    assert computed == ["shard-00000.safetensors"]
    (copy / ".verified.json").unlink()
    Store(copy)
    assert len(computed) == 1 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "has schema version 3, this package reads up to 2: update sae_lightning"),
        ({"schema": "two"}, "is damaged"),
        ({"dtype": "int4"}, "is damaged"),
        ({"complete": False}, "is incomplete .4 of 4 shards"),
        ({"shards": 3}, "is damaged"),
        ({"surprise": 1}, "is damaged"),
    ],
)
def test_manifests_that_cannot_be_used(copy, change, message):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        Store(copy)


def test_no_store_there(tmp_path):
    with pytest.raises(InputError, match=r"nothing is no activation store: manifest.json cannot be read .*data.store"):
        ExistingStore(tmp_path / "nothing").widths()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        Store(tmp_path)


def test_an_unknown_hook_point_is_refused_with_those_that_are_there(made):
    for ask in (made.width, made.statistics, lambda hook: made.read(hook, 0, 1)):
        with pytest.raises(InputError, match=f"hook point 'layer' is not in .*{HOOKS[0]}, {HOOKS[1]}"):
            ask("layer")


def test_shards_are_plain_safetensors(made):
    content = (made.path / "shard-00000.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    assert header[HOOKS[0]]["shape"] == [240, 16]
    assert header[HOOKS[0]]["dtype"] == "F32"
    assert {"token", "sequence", "position", "tokens", "sequence_ids", "sequence_rows"} < set(header)
