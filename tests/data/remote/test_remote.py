"""A store on a real HTTP server: the rows of the local one, whatever the server and the cache do."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.foreign.existing import existing
from sae_lightning.data.remote.cache import ShardCache
from sae_lightning.data.remote.server import Patience, Server
from sae_lightning.data.remote.store import RemoteSource, RemoteStore
from sae_lightning.data.sources import cached
from sae_lightning.errors import InputError
from tests.data.small_store import small_store
from tests.data.web import Web, serving
from tests.forks import forks, start

pytestmark = [pytest.mark.usefixtures("unchecked"), forks]
SOON = Patience(0.5, (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("stores") / "made")


@pytest.fixture
def web(made):
    with serving(made.path) as web:
        yield web


def largest(made) -> int:
    return max(shard.bytes for shard in made.manifest.shards)


def source(web: Web, stores: Path, cache_bytes: int) -> RemoteSource:
    made = RemoteSource(web.url, stores, cache_bytes)
    made.server = Server(web.url, SOON, SOON)
    return made


def rows_of(source, shards_at_once: int | None = 2) -> ActivationDataModule:
    return ActivationDataModule(
        source, "a", 32, validation_rows=100, pool_rows=256, seed=3, others=["b"], views="pair", shards_at_once=shards_at_once
    )


def batches(rows: ActivationDataModule, first: int, stop: int) -> list[torch.Tensor]:
    return [torch.cat(rows.train_batch(i)[:2], dim=1) for i in range(first, stop)]


def on_disk(folder: Path) -> int:
    total = 0
    for path in [*folder.glob("shard-*"), *folder.glob(".shard-*.tmp")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_batches_are_those_of_the_local_store_and_the_cache_stays_within_its_bytes(tmp_path: Path, dtype: str) -> None:
    made = small_store(tmp_path / "made", dtype)
    local = rows_of(existing(made.path, tmp_path))
    n = 2 * (local.parts.train_rows // 32) + 2
    expected = batches(local, 0, n)
    limit = 4 * largest(made)
    with serving(made.path) as web:
        remote = rows_of(at := source(web, tmp_path / "here", limit), source(web, tmp_path, limit).shards_at_once(None))
        assert remote.shards_at_once == 2
        for i in range(n):
            assert_close(batches(remote, i, i + 1)[0], expected[i], rtol=0, atol=0)
            assert on_disk(at.folder) <= limit
        again = rows_of(source(web, tmp_path / "here", limit))  # with another content of the cache, and from places within a pass
        elsewhere = rows_of(source(web, tmp_path / "new", limit))
        for i in (n // 3, n - 1, 5):
            assert_close(batches(again, i, i + 1)[0], expected[i], rtol=0, atol=0)
            assert_close(batches(elsewhere, i, i + 1)[0], expected[i], rtol=0, atol=0)
        for ours, theirs in zip(remote.held_out(), local.held_out(), strict=True):
            assert_close(ours, theirs, rtol=0, atol=0)
        before = len(web.requests)
        assert len(list(remote.held_out())) == len(list(again.held_out()))
        assert len(web.requests) == before  # validation rows were fetched once, for all processes of this machine
        assert_close(remote.sample(50, 1), local.sample(50, 1), rtol=0, atol=0)
        for ours, theirs in zip(remote.tokens_held_out(3), local.tokens_held_out(3), strict=True):
            assert_close(ours, theirs, rtol=0, atol=0)
        assert_close(remote.store.statistics("a").mean, made.statistics("a").mean, rtol=0, atol=0)
        assert remote.shape == local.shape


def test_nothing_but_small_parts_is_fetched_before_the_first_batch(tmp_path: Path, web: Web, made) -> None:
    rows = rows_of(source(web, tmp_path, 4 * largest(made)))
    assert rows.parts.train_rows > 0 and len(list(rows.held_out())) > 0 and rows.sample(5, 0).x.shape == (5, 32)
    assert web.whole() == []
    del web.requests[:]
    rows_of(source(web, tmp_path, 4 * largest(made))).setup()
    assert [request.name for request in web.requests] == ["manifest.json", "statistics.safetensors"]


@pytest.mark.parametrize("fault", ["stall", "drop", "half", "flip", 500, 503, 429])
def test_a_failing_server_costs_no_row(tmp_path: Path, web: Web, made, fault) -> None:
    remote = source(web, tmp_path, 6 * largest(made)).ensure()
    web.faults.extend([fault] if fault == "flip" else [fault, fault])
    for first in (0, 700):  # from two shards
        assert_close(remote.read("a", first, first + 20).values, made.read("a", first, first + 20).values, rtol=0, atol=0)
    assert not web.faults


@pytest.mark.parametrize(
    ("fault", "attempts", "message"),
    [
        (503, 4, "shard-00001.safetensors was asked for 4 times, the last time: 503"),
        ("stall", 4, "the last time: no answer within 0.5 s"),
        ("half", 4, "bytes came instead of"),
        ("flip", 2, "is altered (its checksum is not that of the manifest)"),
        (404, 1, "is not there: check data.store"),
        (403, 1, "may not be read (403"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_one_line(tmp_path: Path, web: Web, made, fault, attempts: int, message: str) -> None:
    remote = source(web, tmp_path, 6 * largest(made)).ensure()
    web.faults.append(fault)
    web.is_for_good = True
    del web.requests[:]
    with pytest.raises(InputError) as refusal:
        remote.read("a", 300, 310)
    assert message in str(refusal.value) and web.url in str(refusal.value) and "\n" not in str(refusal.value)
    assert len(web.requests) == attempts
    web.faults.clear()
    assert_close(remote.read("a", 300, 310).values, made.read("a", 300, 310).values, rtol=0, atol=0)


def test_without_a_network_there_is_one_line_within_seconds(tmp_path: Path, made) -> None:
    with serving(made.path) as gone:
        url = gone.url
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"/store/manifest.json was asked for 3 times, the last time: .*check the network") as refusal:
        cached(url, 32, stores=str(tmp_path))
    assert time.monotonic() - begin < 10 and "\n" not in str(refusal.value)


def test_a_server_without_byte_ranges_is_refused(tmp_path: Path, web: Web, made) -> None:
    web.with_ranges = False
    with pytest.raises(InputError, match="use a server that knows byte ranges"):
        source(web, tmp_path, 6 * largest(made)).ensure()


@pytest.mark.parametrize(
    ("bytes_", "at_once", "message"),
    [(1.9, None, "is less than two shards of"), (4, 5, "raise that, or set data.shards_at_once=null")],
)
def test_a_cache_that_is_too_small_is_refused(tmp_path: Path, web: Web, made, bytes_, at_once, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cached(web.url, 32, stores=str(tmp_path), cache_bytes=int(bytes_ * largest(made)), shards_at_once=at_once)


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://bucket/store", r"pip install 'sae_lightning\[s3\]'"), ("nonsense://x/y", "cannot be opened .*check the URL")],
)
def test_a_protocol_that_is_missing_is_named(tmp_path: Path, monkeypatch, url: str, message: str) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # where a test imported it before
    with pytest.raises(InputError, match=message):
        cached(url, 32, stores=str(tmp_path))


def test_hub_paths_are_those_of_the_hub() -> None:
    server = Server("hf://datasets/somebody/activations/store/")
    assert server._system.protocol == "hf" and server._root == "datasets/somebody/activations/store"


def read_all(url: str, stores: Path, cache_bytes: int, ready: Path | None = None) -> None:
    """In a child."""
    if ready is not None:
        while not ready.exists():
            time.sleep(0.01)
    remote = RemoteSource(url, stores, cache_bytes).ensure()
    remote.fetch_ahead(list(range(6)))
    for first in range(0, remote.rows, 60):
        remote.read("a", first, first + 60)


def test_two_processes_share_a_cache_and_fetch_each_shard_once(tmp_path: Path, web: Web, made) -> None:
    ready = tmp_path / "ready"
    children = [start(read_all, web.url, tmp_path / "here", 6 * largest(made), ready) for _ in range(2)]
    ready.touch()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert sorted(web.whole()) == [shard.name for shard in made.manifest.shards]


def test_killed_within_a_fetch_the_cache_stays_usable(tmp_path: Path, web: Web, made) -> None:
    limit = 2 * largest(made)
    remote = source(web, tmp_path, limit).ensure()  # the index is there before the child looks at it
    web.faults.append("stall")
    web.is_for_good = True
    child = start(read_all, web.url, tmp_path, limit)
    while not list(remote._folder.glob(".shard-*.tmp")):
        assert child.is_alive()
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    web.faults.clear()
    for first in range(0, remote.rows, 60):
        assert_close(remote.read("b", first, first + 60).values, made.read("b", first, first + 60).values, rtol=0, atol=0)
        assert on_disk(remote._folder) <= limit
    assert not list(remote._folder.glob(".shard-*.tmp"))


def test_shards_that_are_wanted_stay_while_others_go(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 30)
    names = [f"shard-{i}" for i in range(5)]

    def fetch(i: int, wanted: list[int], is_needed: bool) -> set[int]:
        cache.fetch(names[i], 10, lambda path: None, [names[each] for each in wanted], is_needed)
        time.sleep(0.01)  # times of files are not finer everywhere
        return {int(path.name[-1]) for path in tmp_path.glob("shard-*")}

    assert [fetch(i, [], True) for i in range(3)][-1] == {0, 1, 2}
    os.close(cache.opened(names[0], 10))
    assert fetch(3, [2, 3], False) == {0, 2, 3}  # 1 was in use before 0
    assert fetch(4, [0, 2, 3, 4], False) == {0, 2, 3}  # ahead there is no room
    assert fetch(4, [0, 2, 3], True) == {0, 2, 4}  # at once: that of the last


def test_rows_of_a_remote_store_are_rows(web: Web, tmp_path: Path, made) -> None:
    remote: RemoteStore = source(web, tmp_path, 2 * largest(made)).ensure()
    assert remote.mapped("a") is None
    for start_, stop in ((0, 0), (230, 500), (1439, 1440), (0, 1440)):
        assert_close(remote.read("b", start_, stop).values, made.read("b", start_, stop).values, rtol=0, atol=0)
    with pytest.raises(InputError, match="hook point 'c' is not in http://"):
        remote.read("c", 0, 1)
