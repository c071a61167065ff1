"""What data.store may be, and trainings on it."""

import json

import pytest

from sae_lightning.data.foreign.existing import existing
from sae_lightning.data.store import ExistingStore
from sae_lightning.errors import InputError
from tests.data.tiny import harvest


def test_our_own_store_is_recognised(tmp_path):
    source = existing(harvest(tmp_path).ensure().path, tmp_path)
    assert isinstance(source, ExistingStore)


def test_what_is_none_of_these_is_refused_with_what_is_read(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.txt").write_text("x")
    (tmp_path / "file.npy").write_bytes(b"x")
    for name, why in (("empty", "holds none of"), ("text", "holds none of"), ("nothing", "no such folder"), ("file.npy", "no such folder")):
        with pytest.raises(InputError, match=f"{name} is no activation store, .*{why}.*state.json.*.npy, .safetensors or .pt") as error:
            existing(tmp_path / name, tmp_path)
        assert "\n" not in str(error.value)


def test_a_dataset_of_splits(tmp_path):
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(InputError, match=r"is a dataset of several splits: set data.store to one of their folders"):
        existing(tmp_path, tmp_path)
