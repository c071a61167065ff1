"""What an offline run of W&B says, read from its own log: LevelDB's framing around protobuf records."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK, HEADER = 32_768, 7


class Artifact(NamedTuple):
    type: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: set[str]


class Offline(NamedTuple):
    id: str
    project: str
    group: str
    tags: list[str]
    notes: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    artifacts: list[Artifact]
    exit_code: int | None


def read(path: Path) -> Offline:
    """A run-….wandb file."""
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    artifacts, exit_code, run = [], None, None
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = run or record.run
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind == "history":
            history.append(_items(record.history.item))
        elif kind == "summary":
            summary |= _items(record.summary.update)
        elif kind == "exit":
            exit_code = record.exit.exit_code
        elif kind in ("artifact", "request") and (made := _artifact(record, kind)) is not None:
            artifacts.append(made)
    assert run is not None
    return Offline(run.run_id, run.project, run.run_group, list(run.tags), run.notes, config, history, summary, artifacts, exit_code)


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _artifact(record: Any, kind: str) -> Artifact | None:
    found = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
    if not found.type:
        return None
    files = {entry.path for entry in found.manifest.contents}
    return Artifact(found.type, list(found.aliases), json.loads(found.metadata or "{}"), files)


def _records(data: bytes) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    assert data[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # what is left of a block is padding
            at += BLOCK - at % BLOCK
            continue
        checksum, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        body = data[at + HEADER : at + HEADER + length]
        if kind == 0 or len(body) < length:
            return
        assert zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        at += HEADER + length
        parts = body if kind in (1, 2) else parts + body  # whole, first, middle, last
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
