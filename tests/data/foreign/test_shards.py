"""Folders of .npy, .safetensors and .pt files."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from sae_lightning.data.foreign.cache import STRETCH
from sae_lightning.errors import InputError
from tests.data.foreign.folders import CONTEXT, HOOK, WRITERS, D, opened, rows_of, write_npy, write_pt, write_safetensors
from tests.data.numbered import rows_of_sequences

FLAT = {kind: write for kind, write in WRITERS.items() if kind != "arrow"}


@pytest.mark.parametrize("kind", FLAT)
def test_rows_without_sequences_are_held_out_in_stretches(tmp_path, kind):
    shards = [x.view(-1, D) for x in rows_of((30, 4), context=CONTEXT)]  # 360 and 48 rows
    cache = opened(FLAT[kind](tmp_path / HOOK, shards))
    assert cache.shard_starts.tolist() == [0, 360, 408]
    assert rows_of_sequences(cache).tolist() == [STRETCH, STRETCH, 360 - 2 * STRETCH, 48]
    assert_close(cache.read(HOOK, 0, 408).values, torch.cat(shards), rtol=0, atol=0)
    with pytest.raises(InputError, match="holds no token_ids"):
        cache.tokens([0])


def test_where_a_row_without_a_sequence_is_no_number(tmp_path):
    shards = [x.view(-1, D) for x in rows_of()]
    shards[3][5, 0] = torch.nan
    cache = opened(write_npy(tmp_path / HOOK, shards))
    with pytest.raises(InputError, match=r"^row 5 of \S+shard_3.npy has NaN"):
        cache.statistics(HOOK)


def test_the_hook_points_of_safetensors_are_its_tensors(tmp_path):
    shards = rows_of()
    more = [{"layers.10": x.half(), "layers.9": x[..., :3].bfloat16(), "position": torch.arange(5), "scale": torch.ones(3)} for x in shards]
    cache = opened(write_safetensors(tmp_path / "cache", shards, more))
    assert cache.hooks == [HOOK, "layers.9", "layers.10"]
    assert [cache.width(hook) for hook in cache.hooks] == [D, 3, D]
    assert_close(cache.read("layers.9", 0, cache.rows).values, torch.cat(shards).view(-1, D)[:, :3].bfloat16(), rtol=0, atol=0)


def test_other_files_are_not_looked_at(tmp_path):
    folder = write_npy(tmp_path / "cache", rows_of())
    rows = opened(folder).rows
    (folder / "readme.txt").write_text("x")
    (folder / ".shard_1.npy").write_bytes(b"half")
    (folder / "more.npy").mkdir()
    assert opened(folder).rows == rows


def test_a_shard_without_rows_is_none(tmp_path):
    shards = rows_of()
    shards[1] = shards[1][:0]
    cache = opened(write_npy(tmp_path / "cache", shards))
    assert len(cache.shard_starts) == len(shards)
    with pytest.raises(InputError, match="holds no rows"):
        opened(write_npy(tmp_path / "none", [shards[1]]))


def refusal(folder) -> str:
    with pytest.raises(InputError) as error:
        opened(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (torch.zeros(3, 4, 5), "has rows of width 5 at"),
        (torch.zeros(3, 4, D).half(), "is float16 at"),
        (torch.zeros(3, 4, D).double(), "float64"),
        (torch.zeros(3, 4, D).int(), "int32"),
        (torch.zeros(D), "has shape [16] at"),
        (torch.zeros(2, 3, 4, D), "has shape [2, 3, 4, 16] at"),
        (torch.zeros(3, 4, 0), "has shape [3, 4, 0] at"),
        (torch.zeros(D, 4).T, "order: write it|not contiguous"),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "pt"])
def test_files_that_do_not_go_together(tmp_path, kind, tensor, says):
    folder = FLAT[kind](tmp_path / "cache", rows_of((2, 2)))
    path = folder / f"shard_10.{kind}"
    if kind == "pt":
        torch.save(tensor, path)
    else:
        np.save(path, tensor.numpy())  # it keeps the order of a transposed array
    said = refusal(folder)
    assert str(path) in said
    assert any(part in said for part in says.split("|"))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"other": torch.zeros(3, 4, D)}, "holds 'other'"),
        ({HOOK: torch.zeros(3, 4, D), "other": torch.zeros(3, 4, D)}, f"holds '{HOOK}', 'other' and"),
        ({"ids": torch.zeros(3, 4).long()}, "has no tensor of rows"),
        ({HOOK: torch.zeros(3, 4, D), "other": torch.zeros(3, 5, D)}, "different sequences"),
        ({HOOK: torch.zeros(3, 4, D).double()}, "is float64"),
        ({HOOK: torch.zeros(3, 4, D), "token_ids": torch.zeros(3, 5).int()}, "has token_ids of shape [3, 5] beside sequences [3, 4]"),
        ({HOOK: torch.zeros(3, 4, D), "token_ids": torch.zeros(3, 4).int()}, "only one of"),
    ],
)
def test_safetensors_that_do_not_go_together(tmp_path, tensors, says):
    folder = write_safetensors(tmp_path / "cache", rows_of((2, 2)))
    save_file(tensors, folder / "shard_10.safetensors")
    said = refusal(folder)
    assert says in said
    assert str(folder / "shard_10.safetensors") in said


def test_token_ids_of_contexts_of_several_lengths(tmp_path):
    (tmp_path / "cache").mkdir()
    for n in (4, 5):
        save_file({HOOK: torch.zeros(3, n, D), "token_ids": torch.zeros(3, n).int()}, tmp_path / f"cache/{n}.safetensors")
    assert "has sequences of 5 tokens" in refusal(tmp_path / "cache")


class Harmless:
    pass


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (Harmless(), "holds pickled objects, which are never run"),
        ({"x": torch.zeros(3, D)}, "holds a dict and not a tensor"),
        ([torch.zeros(3, D)], "holds a list and not a tensor"),
    ],
)
def test_a_pt_that_holds_something_else(tmp_path, held, says):
    folder = write_pt(tmp_path / "cache", rows_of((2, 2)))
    torch.save(held, folder / "shard_2.pt")
    said = refusal(folder)
    assert says in said
    assert str(folder / "shard_2.pt") in said


def test_what_is_in_a_pickle_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    (tmp_path / "cache").mkdir()
    torch.save(Harm(), tmp_path / "cache/x.pt")
    np.save(tmp_path / "y.npy", np.array([Harm()], dtype=object), allow_pickle=True)
    assert "holds pickled objects" in refusal(tmp_path / "cache")
    (tmp_path / "cache/x.pt").unlink()
    (tmp_path / "y.npy").rename(tmp_path / "cache/y.npy")
    assert "y.npy cannot be read as a .npy file of numbers" in refusal(tmp_path / "cache")
    assert not (tmp_path / "written").exists()


def test_a_pt_of_the_old_format(tmp_path):
    (tmp_path / "cache").mkdir()
    torch.save(torch.zeros(3, D), tmp_path / "cache/x.pt", _use_new_zipfile_serialization=False)
    assert "x.pt cannot be read" in refusal(tmp_path / "cache")


@pytest.mark.parametrize("length", [0, 5, 60, -1])
@pytest.mark.parametrize("kind", FLAT)
def test_a_file_that_was_cut_short(tmp_path, kind, length):
    folder = FLAT[kind](tmp_path / "cache", rows_of((2, 2)))
    path = folder / f"shard_1.{kind}"
    path.write_bytes(path.read_bytes()[:length])
    assert str(path) in refusal(folder)


def test_files_of_two_kinds(tmp_path):
    folder = write_npy(tmp_path / "cache", rows_of((2, 2)))
    torch.save(torch.zeros(3, D), folder / "x.pt")
    assert "holds .npy and .pt files: set data.store to a folder of one kind" in refusal(folder)
