"""Datasets saved to disk, among them one that SAELens wrote."""

import json
import shutil

import pyarrow
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sae_lightning.errors import InputError
from tests.data.foreign.folders import CONTEXT, HOOK, D, opened, rows_of, token_ids_of, write_arrow
from tests.oracles.make_golden import GOLDEN

EXACT = {"rtol": 0, "atol": 0}


@pytest.mark.parametrize("is_registered", [True, False])
def test_what_sae_lens_wrote_is_what_sae_lens_reads(tmp_path, is_registered):
    """Written by its CacheActivationsRunner, read by its ActivationsStore (tests/oracles/make_golden.py)."""
    from datasets.features.features import Array2DExtensionType

    expected = load_file(GOLDEN / "sae_lens_cache.safetensors")
    name = "datasets.features.features.Array2DExtensionType"
    if not is_registered:
        pyarrow.unregister_extension_type(name)  # as where datasets was never imported
    try:
        cache = opened(GOLDEN / "sae_lens_cache", tmp_path)
    finally:
        if not is_registered:
            pyarrow.register_extension_type(Array2DExtensionType((1, 2), "int64"))
    sequences, context = expected["token_ids"].shape
    assert (cache.hooks, cache.sequences, cache.rows) == (["blocks.0.hook_resid_post"], sequences, sequences * context)
    assert cache.shard_starts.tolist() == [0, 48, 96, 144]
    read = cache.read(cache.hooks[0], 0, cache.rows)
    assert read.values.dtype == torch.float16
    assert_close(read.values, expected["rows"], **EXACT)
    assert_close(cache.tokens(range(sequences)), expected["token_ids"], **EXACT)


def test_the_writer_of_these_tests_writes_what_sae_lens_does(tmp_path):
    """The same layout: types in Arrow, features, the list of files."""
    shards = rows_of((8, 8, 8), torch.float16, context=6, d=8)
    ours = write_arrow(tmp_path / "ours", shards, token_ids_of(shards))
    theirs = GOLDEN / "sae_lens_cache"
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    types = []
    for folder in (ours, theirs):
        with pyarrow.ipc.open_stream(pyarrow.memory_map(str(folder / "data-00001-of-00003.arrow"))) as stream:
            types.append([(str(field.type), field.nullable) for field in stream.schema])
            assert [batch.num_rows for batch in stream] == [8]
    assert types[0] == types[1]
    features = [list(json.loads((folder / "dataset_info.json").read_text())["features"].values()) for folder in (ours, theirs)]
    assert features[0] == features[1]
    states = [json.loads((folder / "state.json").read_text()) for folder in (ours, theirs)]
    assert states[0]["_data_files"] == states[1]["_data_files"]


@pytest.mark.parametrize("batch", [1, 5, 36])
def test_record_batches_of_any_size(tmp_path, batch):
    """And other types of lists than SAELens': of fixed or of any length, with 64 bits, whose first one was cut off."""
    x = torch.cat(rows_of())
    flat = pyarrow.array(x.flatten().numpy())
    fixed = pyarrow.FixedSizeListArray.from_arrays(pyarrow.FixedSizeListArray.from_arrays(flat, D), CONTEXT)
    free = fixed.cast(pyarrow.list_(pyarrow.list_(pyarrow.float32())))
    large = fixed.cast(pyarrow.large_list(pyarrow.large_list(pyarrow.float32())))
    table = pyarrow.table({"fixed": fixed, "free": free, "large": large, "text": ["word"] * len(x)}).slice(1)
    folder = save(tmp_path / "cache", table, batch)
    cache = opened(folder)
    assert cache.hooks == ["fixed", "free", "large"]
    assert len(cache.shard_starts) - 1 == -(-35 // batch)
    for hook in cache.hooks:
        assert_close(cache.read(hook, 0, cache.rows).values, x[1:].reshape(-1, D), **EXACT)


def save(folder, table, batch=None, options=None):
    folder.mkdir()
    with pyarrow.ipc.new_stream(str(folder / "data.arrow"), table.schema, options=options) as stream:
        stream.write_table(table, batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    return folder


def nested(rows):
    return pyarrow.array(rows, pyarrow.list_(pyarrow.list_(pyarrow.float32())))


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"text": ["a"]}, "has no column of rows [context, d] in float16 or float32: it holds text (string)"),
        ({"x": [[1.0, 2.0]]}, "it holds x (double)"),
        ({"x": [[[1.0, 2.0]]]}, "it holds x (lists of lists of double)"),
        ({"x": nested([[[1, 2], [3, 4]], [[1, 2]]])}, "cannot be read at 'x': its examples have between 1 and 2 entries"),
        ({"x": nested([[[1, 2], [3]]])}, "its examples have between 1 and 2 entries"),
        ({"x": nested([[], []])}, "its examples are empty"),
        ({"x": nested([[[1, 2]], None])}, "examples are missing"),
        ({"x": nested([[[1, None]]])}, "entries are missing"),
        ({"x": nested([[[1]]]), "y": nested([[[1], [2]]])}, "has contexts of 2 and 1 tokens"),
        ({"x": nested([[[1], [2]]]), "token_ids": pyarrow.array([[1]])}, "has 1 token_ids for sequences of 2 rows"),
        ({"x": nested([[[1], [2]]]), "token_ids": ["a b"]}, "cannot be read at 'token_ids': string"),
    ],
)
def test_columns_that_are_no_rows(tmp_path, columns, says):
    folder = save(tmp_path / "cache", pyarrow.table(columns))
    said = refusal(folder)
    assert says in said
    assert str(folder / "data.arrow") in said


def test_compressed_rows(tmp_path):
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    folder = save(tmp_path / "cache", pyarrow.table({"x": nested([[[1.0] * 64] * 64])}), options=options)
    assert "is compressed" in refusal(folder)


def refusal(folder) -> str:
    with pytest.raises(InputError) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_damaged_folders(tmp_path):
    shards = rows_of()
    whole = write_arrow(tmp_path / "whole", shards)
    for name, spoil, says in (
        ("state.json", lambda path: path.unlink(), "has no state.json: the cache was not finished"),
        ("state.json", lambda path: path.write_text("{"), "state.json is damaged"),
        ("data-00001-of-00003.arrow", lambda path: path.unlink(), "data-00001-of-00003.arrow is missing"),
        ("data-00001-of-00003.arrow", lambda path: path.write_bytes(path.read_bytes()[:5000]), "was cut short"),
        ("data-00001-of-00003.arrow", lambda path: path.write_bytes(path.read_bytes()[:50]), "was cut short"),
        ("data-00002-of-00003.arrow", lambda path: path.write_bytes(b""), "data-00002-of-00003.arrow is empty"),
    ):
        folder = shutil.copytree(whole, tmp_path / "spoilt")
        spoil(folder / name)
        assert says in refusal(folder)
        shutil.rmtree(folder)


def test_files_that_the_library_caches_for_itself_are_not_read(tmp_path):
    folder = write_arrow(tmp_path / "cache", rows_of())
    (folder / "cache-0123456789abcdef.arrow").write_bytes(b"indices")
    assert opened(folder).read(HOOK, 0, 1).values.shape == (1, D)
