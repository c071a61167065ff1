"""What holds for other people's activations of any format."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import sae_lightning.data.foreign.measured as measured
from sae_lightning.data.stored import StoredRows
from sae_lightning.errors import InputError
from tests.data.foreign.folders import (
    CONTEXT,
    HOOK,
    SHARDS,
    WRITERS,
    D,
    opened,
    rows_of,
    token_ids_of,
    write_arrow,
    write_npy,
    write_safetensors,
)
from tests.data.numbered import rows_of_sequences
from tests.forks import fork, forks, start

CASES = [
    *((kind, dtype) for kind in ("safetensors", "pt") for dtype in (torch.float16, torch.bfloat16, torch.float32)),
    *((kind, dtype) for kind in ("npy", "arrow") for dtype in (torch.float16, torch.float32)),
]
EXACT = {"rtol": 0, "atol": 0}


def cache_of(tmp_path, kind, dtype=torch.float32):
    """With the rows that it must hold, and its one hook point."""
    shards = rows_of(dtype=dtype)
    cache = opened(WRITERS[kind](tmp_path / HOOK, shards))
    return cache, torch.cat(shards).view(-1, D)


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_every_row_is_the_one_that_was_written(tmp_path, kind, dtype):
    cache, rows = cache_of(tmp_path, kind, dtype)
    assert isinstance(cache, StoredRows)
    assert (cache.hooks, cache.width(HOOK), cache.rows, cache.sequences) == ([HOOK], D, len(rows), sum(SHARDS))
    read = cache.read(HOOK, 0, cache.rows)
    assert read.values.dtype == dtype and read.scale is None
    assert_close(read.values, rows, **EXACT)
    for begin, end in ((0, 0), (0, 1), (CONTEXT - 1, CONTEXT + 1), (35, 36), (35, 200), (len(rows) - 1, len(rows)), (len(rows),) * 2):
        assert_close(cache.read(HOOK, begin, end).values, rows[begin:end], **EXACT)
    numbers = torch.randint(len(rows), (500,), generator=torch.Generator().manual_seed(0))
    assert_close(cache.rows_at(HOOK, numbers), rows[numbers].float(), **EXACT)
    assert_close(cache.rows_at(HOOK, numbers[:0]), torch.empty(0, D), **EXACT)
    for begin, end in ((-1, 3), (3, 2), (0, len(rows) + 1)):
        with pytest.raises(IndexError):
            cache.read(HOOK, begin, end)


@pytest.mark.parametrize("kind", WRITERS)
def test_sequences_are_those_of_the_files(tmp_path, kind):
    cache, rows = cache_of(tmp_path, kind)
    assert rows_of_sequences(cache).tolist() == [CONTEXT] * (len(rows) // CONTEXT)
    starts = cache.shard_starts.tolist()
    assert starts[0] == 0 and starts[-1] == len(rows) and starts == sorted(set(starts))
    if kind != "arrow":
        assert starts == [CONTEXT * n for n in np.cumsum([0, *SHARDS])]


@pytest.mark.parametrize("kind", WRITERS)
def test_rows_lie_in_the_mapped_files(tmp_path, kind):
    cache, rows = cache_of(tmp_path, kind, torch.float16)
    mapped = cache.mapped(HOOK)
    assert_close(torch.cat([part.values for part in mapped]), rows, **EXACT)
    assert [len(part.values) for part in mapped] == cache.shard_starts.diff().tolist()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(cache.path) in line]
    stretches = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    for part in [*mapped, cache.read(HOOK, 40, 45)]:
        begin = part.values.data_ptr()
        assert any(low <= begin and begin + part.values.nbytes <= high for low, high in stretches)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", WRITERS)
def test_statistics_are_numpys(tmp_path, kind, dtype, monkeypatch):
    monkeypatch.setattr(measured, "ENTRIES_AT_ONCE", 7 * D)  # several pieces to a shard
    monkeypatch.setattr(measured, "ROWS_FOR_MEDIAN", 101)
    cache, rows = cache_of(tmp_path, kind, dtype)
    found, x = cache.statistics(HOOK), rows.double().numpy()
    norms = np.linalg.norm(x, axis=1)
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        [found.sum_of_squares, found.min_norm, found.max_norm, found.median_norm],
        [(x**2).sum(), norms.min(), norms.max(), np.median(norms[:101])],
        rtol=1e-12,
    )


def test_statistics_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(measured, "_pass", lambda cache, hook, real=measured._pass: passes.append(hook) or real(cache, hook))
    shards, stores = rows_of(), tmp_path / "stores"
    other = [{"blocks.11.hook_resid_post": x * 2} for x in shards]
    folder = write_safetensors(tmp_path / "cache", shards, other)
    before = sorted(folder.iterdir())
    first = opened(folder, stores).statistics(HOOK)
    again = opened(folder, stores)
    assert_close(again.statistics(HOOK)._asdict(), first._asdict(), **EXACT)
    assert passes == [HOOK]
    doubled = again.statistics("blocks.11.hook_resid_post")
    assert doubled.sum_of_squares == pytest.approx(4 * first.sum_of_squares, rel=1e-12)
    assert_close(opened(folder, stores).statistics(HOOK)._asdict(), first._asdict(), **EXACT)
    assert passes == [HOOK, "blocks.11.hook_resid_post"]
    assert sorted(folder.iterdir()) == before
    os.utime(folder / "shard_4.safetensors")
    opened(folder, stores).statistics(HOOK)
    assert len(passes) == 3
    for kept in stores.rglob("statistics.safetensors"):
        kept.write_bytes(b"cut short")
    assert_close(opened(folder, stores).statistics(HOOK)._asdict(), first._asdict(), **EXACT)
    assert len(passes) == 4


def test_statistics_without_a_place_to_keep_them(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = opened(write_npy(tmp_path / "cache", rows_of()), tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert cache.statistics("cache").count == cache.rows
    assert "set paths.stores" in caplog.text


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_that_are_no_numbers_are_refused_with_where(tmp_path, kind, bad):
    shards = rows_of(dtype=torch.float16)
    shards[8][4, 3, 7] = bad
    cache = opened(WRITERS[kind](tmp_path / HOOK, shards))
    sequence = sum(SHARDS[:8]) + 4
    row = CONTEXT * sequence + 3
    assert not cache.read(HOOK, row, row + 1).values.isfinite().all()
    with pytest.raises(InputError, match=f"has NaN or infinite entries at hook point '{HOOK}'") as error:
        cache.statistics(HOOK)
    file, within = ("data-00002-of-00003.arrow", sequence - 24) if kind == "arrow" else (f"shard_8.{kind}", 4)
    assert f"row {CONTEXT * within + 3} of {cache.path / file} (position 3 of its sequence {within}) has" in str(error.value)
    assert "\n" not in str(error.value)


def test_token_ids(tmp_path):
    shards = rows_of()
    ids = token_ids_of(shards)
    for cache in (
        opened(write_arrow(tmp_path / "arrow", shards, ids)),
        opened(write_safetensors(tmp_path / "safetensors", shards, [{"token_ids": x.long()} for x in ids])),
    ):
        assert cache.has_tokens and cache.hooks == [HOOK]
        wanted = torch.tensor([35, 0, 4, 3, 17])
        assert_close(cache.tokens(wanted), torch.cat(ids)[wanted], **EXACT)
        assert_close(cache.tokens([1, 2]), torch.cat(ids)[1:3], **EXACT)
        assert cache.has_row([1, 2]).tolist() == [[True] * CONTEXT] * 2


@pytest.mark.parametrize("kind", WRITERS)
def test_without_token_ids(tmp_path, kind):
    cache, _ = cache_of(tmp_path, kind)
    assert not cache.has_tokens
    for ask in (cache.tokens, cache.has_row):
        with pytest.raises(InputError, match=r"holds no token_ids: leave out what needs the text"):
            ask([0])


def test_an_unknown_hook_point_is_refused_with_those_that_are_there(tmp_path):
    cache, _ = cache_of(tmp_path, "npy")
    for ask in (cache.width, cache.statistics, cache.mapped, lambda hook: cache.read(hook, 0, 1)):
        with pytest.raises(InputError, match=f"hook point 'layer' is not in .*{HOOK}"):
            ask("layer")


def test_a_cache_that_may_not_be_written_into(tmp_path):
    folder = write_npy(tmp_path / "cache", rows_of())
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert opened(folder).statistics("cache").count == CONTEXT * sum(SHARDS)
    folder.chmod(0o755)


def measure(folder, said):
    """In a child: its statistics, by a pass of a second at least."""
    measured._pass = lambda *given, real=measured._pass: said.put("a pass") or time.sleep(1) or real(*given)
    said.put(opened(folder).statistics("cache").sum_of_squares)


@forks
def test_one_of_two_processes_makes_the_pass(tmp_path):
    folder, said = write_npy(tmp_path / "cache", rows_of()), fork.SimpleQueue()
    children = [start(measure, folder, said) for _ in range(2)]
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
    heard = [said.get() for _ in range(3)]
    assert heard[0] == "a pass"
    assert heard[1] == heard[2] == opened(folder).statistics("cache").sum_of_squares


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_a_file_larger_than_the_memory(tmp_path, kind):
    folder, shape = tmp_path / HOOK, (2**16, 4096, 4096)  # 4 TiB, of which all but two rows are holes
    folder.mkdir()
    with open(folder / f"rows.{kind}", "wb") as file:
        if kind == "npy":
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        else:
            header = json.dumps({HOOK: {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**42]}}).encode()
            file.write(len(header).to_bytes(8, "little") + header + b"")
        row = np.arange(4096, dtype="<f4").tobytes()
        file.write(row)
        file.seek(2**42 - 2 * len(row), os.SEEK_CUR)
        file.write(row)
    cache = opened(folder)
    assert (cache.rows, cache.sequences) == (2**28, 2**16)
    read = cache.read(HOOK, cache.rows - 2, cache.rows).values
    assert_close(read, torch.stack([torch.zeros(4096), torch.arange(4096.0)]), **EXACT)
    assert_close(cache.rows_at(HOOK, torch.tensor([0, cache.rows - 1])), torch.arange(4096.0).expand(2, -1), **EXACT)
