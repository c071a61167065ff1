"""A store on a real S3 server, with the client that users have."""

import socket
from pathlib import Path

import pytest
from torch.testing import assert_close

from sae_lightning.data.remote.server import Patience, Server
from sae_lightning.data.remote.store import RemoteSource
from sae_lightning.errors import InputError
from tests.data.numbered import rows_of_sequences
from tests.data.small_store import small_store

SOON = Patience(2, (0.01,))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("stores") / "made")


@pytest.fixture
def bucket(made, monkeypatch):
    """The URL of a copy of a store, in a bucket of its own: all servers of a process hold the same ones."""
    ThreadedMotoServer = pytest.importorskip("moto.server").ThreadedMotoServer
    s3fs = pytest.importorskip("s3fs")

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "ENDPOINT_URL": f"http://{host}:{port}",
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir(f"rows-{port}")
    for path in made.path.iterdir():
        if not path.name.startswith("."):
            system.pipe_file(f"rows-{port}/store/{path.name}", path.read_bytes())
    yield f"s3://rows-{port}/store"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def source(url: str, stores: Path, made) -> RemoteSource:
    found = RemoteSource(url, stores, 4 * max(shard.bytes for shard in made.manifest.shards))
    found.server = Server(url, SOON, SOON)
    return found


def test_rows_are_those_of_the_local_store(tmp_path: Path, bucket: str, made) -> None:
    remote = source(bucket, tmp_path, made).ensure()
    for first in range(0, made.rows, 100):
        stop = min(first + 100, made.rows)
        assert_close(remote.read("a", first, stop).values, made.read("a", first, stop).values, rtol=0, atol=0)
    assert_close(rows_of_sequences(remote), rows_of_sequences(made), rtol=0, atol=0)


def test_what_is_not_there_is_named(tmp_path: Path, bucket: str, made) -> None:
    for url in (bucket.replace("/store", "/elsewhere"), "s3://no-such-bucket/store"):
        with pytest.raises(InputError, match=f"{url}/manifest.json is not there: check data.store"):
            source(url, tmp_path, made).widths()


def test_a_server_that_times_out_is_named(tmp_path: Path, bucket: str, made, monkeypatch) -> None:
    """Connections are taken, and nothing is ever answered."""
    s3fs = pytest.importorskip("s3fs")

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(InputError, match="was asked for 2 times, the last time: no answer within 2 s"):
            source(bucket, tmp_path, made).widths()
