import itertools
import json
import os
import shutil

import pytest
import torch

from sae_lightning.data.parts import merge, split
from sae_lightning.data.sources import cached
from sae_lightning.data.store import Store
from sae_lightning.errors import InputError
from tests.data.numbered import rows_of_sequences
from tests.data.tiny import HOOKS, LOUD, RandomText, TinyLlama, files, harvest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of 4 shards with 16 sequences and 240 rows each, in int8; not to be changed."""
    return harvest(tmp_path_factory.mktemp("stores"), dtype="int8").ensure()


def rows(store: Store, hook: str = HOOKS[1]) -> torch.Tensor:
    return store.read(hook, 0, store.rows).float()


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_parts_joined_again_are_the_store_to_the_byte(made, tmp_path, parts):
    pieces = split(made.path, parts, tmp_path / "parts")
    assert [piece.path.name for piece in pieces] == [f"part-{i:05d}" for i in range(parts)]
    assert sum(piece.rows for piece in pieces) == made.rows
    if parts > 1:
        again = merge([piece.path for piece in reversed(pieces)], tmp_path / "again")
        assert files(again.path) == files(made.path)
        torch.testing.assert_close(rows(again), rows(made), rtol=0, atol=0)


def test_each_part_is_complete_with_statistics_of_its_own(made, tmp_path):
    first = 0
    for piece in split(made.path, 3, tmp_path / "parts"):  # of 2, 1 and 1 shards
        for hook in HOOKS:
            part = rows(made, hook)[first : first + piece.rows].double()
            torch.testing.assert_close(rows(piece, hook).double(), part, rtol=0, atol=0)
            statistics = piece.statistics(hook)
            assert statistics.count == piece.rows
            torch.testing.assert_close(statistics.mean, part.mean(0), rtol=1e-12, atol=1e-12)
            assert statistics.mean_square_norm == pytest.approx(float(part.square().sum(1).mean()), rel=1e-9)
            assert statistics.max_norm == pytest.approx(float(part.norm(dim=1).max()))
            assert statistics.median_norm == made.statistics(hook).median_norm
        sequences = range(first // 15, first // 15 + piece.sequences)
        torch.testing.assert_close(piece.tokens(range(piece.sequences)), made.tokens(sequences))
        torch.testing.assert_close(rows_of_sequences(piece), rows_of_sequences(made)[sequences.start : sequences.stop])
        first += piece.rows
    assert first == made.rows


def test_parts_of_parts_are_parts(made, tmp_path):
    a, b = split(made.path, 2, tmp_path / "halves")
    c, d = split(b.path, 2, tmp_path / "quarters")
    assert (c.identity["share"], d.identity["share"]) == ({"first": 32, "stop": 48, "of": 64}, {"first": 48, "stop": 64, "of": 64})
    assert files(merge([d.path, a.path, c.path], tmp_path / "all").path) == files(made.path)
    middle = merge([c.path, a.path], tmp_path / "middle")
    assert middle.identity["share"] == {"first": 0, "stop": 48, "of": 64}
    torch.testing.assert_close(rows(middle), rows(made)[: 3 * 240], rtol=0, atol=0)
    assert files(merge([middle.path, d.path], tmp_path / "whole").path) == files(made.path)


def test_no_byte_is_copied_on_one_disk_and_the_first_store_may_go(made, tmp_path):
    pieces = split(made.path, 2, tmp_path / "parts")
    whole = merge([piece.path for piece in pieces], tmp_path / "whole")
    for i in range(4):
        name = f"shard-{i:05d}.safetensors"
        assert (whole.path / name).samefile(made.path / name)
        assert (pieces[i // 2].path / f"shard-{i % 2:05d}.safetensors").samefile(made.path / name)
    shutil.rmtree(tmp_path / "parts")
    torch.testing.assert_close(rows(Store(whole.path)), rows(made), rtol=0, atol=0)


def test_shards_are_copied_where_they_cannot_be_linked(made, tmp_path, monkeypatch):
    def link(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    whole = merge([piece.path for piece in split(made.path, 2, tmp_path / "parts")], tmp_path / "whole")
    assert files(whole.path) == files(made.path)
    assert not (whole.path / "shard-00000.safetensors").samefile(made.path / "shard-00000.safetensors")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(InputError, match=r"the shards need \d+ MB on that disk and 0 MB are free"):
        merge([piece.path for piece in split(made.path, 2, tmp_path / "more")], tmp_path / "no")


def test_a_harvest_takes_a_joined_store_for_its_own(made, tmp_path):
    source = harvest(tmp_path / "stores", dtype="int8")
    merge([piece.path for piece in split(made.path, 2, tmp_path / "parts")], source.path)
    transformer = TinyLlama()
    source.transformer = transformer
    assert source.ensure().rows == made.rows
    assert transformer.loads == 0
    (source.path / "shard-00002.safetensors").unlink()
    assert files(source.ensure().path) == files(made.path)


def test_shards_of_several_sizes_are_not_harvested_one_by_one(made, tmp_path):
    halves = split(made.path, 2, tmp_path / "a")
    small = split(harvest(tmp_path / "b", dtype="int8", shard_rows=128).ensure().path, 2, tmp_path / "c")
    source = harvest(tmp_path / "stores", dtype="int8")
    merge([halves[0].path, small[1].path], source.path)
    torch.testing.assert_close(rows(source.ensure()), rows(made), rtol=0, atol=0)
    (source.path / "shard-00002.safetensors").unlink()
    with pytest.raises(InputError, match="merged from shards of several sizes"):
        source.ensure()


def test_stores_of_different_texts_follow_one_another(made, tmp_path):
    other = harvest(tmp_path / "other", dtype="int8", text=RandomText(length=21, highest=40)).ensure()
    both = merge([other.path, made.path], tmp_path / "both")
    torch.testing.assert_close(rows(both), torch.cat([rows(other), rows(made)]), rtol=0, atol=0)
    torch.testing.assert_close(both.tokens([21, 22]), made.tokens([0, 1]))
    assert [text["text"]["length"] for text in both.identity["texts"]] == [21, 10**9]
    third = harvest(tmp_path / "third", dtype="int8", seed=5).ensure()
    everything = merge([both.path, third.path], tmp_path / "everything")
    assert [text["seed"] for text in everything.identity["texts"]] == [0, 0, 5]
    again = merge([piece.path for piece in split(everything.path, 5, tmp_path / "parts")], tmp_path / "again")
    assert files(again.path) == files(everything.path)
    with pytest.raises(InputError, match=r"both hold rows of .* and are not parts of one store"):
        merge([both.path, harvest(tmp_path / "shorter", dtype="int8", max_tokens=512, shard_rows=128).ensure().path], tmp_path / "no")
    with pytest.raises(InputError, match="hold the same rows"):
        merge([everything.path, third.path], tmp_path / "no")
    fourth = harvest(tmp_path / "fourth", dtype="int8", seed=6).ensure()
    with pytest.raises(InputError, match="is a part of a store of several texts: merge it with the other parts first"):
        merge([tmp_path / "parts" / "part-00000", fourth.path], tmp_path / "no")


def test_parts_and_joined_stores_are_trained_on(made, tmp_path):
    pieces = split(made.path, 2, tmp_path / "parts")
    whole = merge([piece.path for piece in pieces], tmp_path / "whole")
    for store in (pieces[1], whole):
        data = cached(str(store.path), batch_size=32, validation_rows=60)
        data.prepare_data()
        data.setup()
        seen = torch.cat([data.train_batch(i).x for i in range(2)])
        assert seen.shape == (64, 16) and seen.isfinite().all()
        assert data.scale[0][0] == pytest.approx(store.statistics(HOOKS[0]).mean_square_norm ** 0.5)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ((0, 2), r"a gap between .*part-00000 and .*part-00002: sequences 16 to 31 are in none"),
        ((0, 1, 1), r"part-00001 and .*part-00001 hold the same rows|overlap"),
        ((0,), "two stores or more"),
    ],
)
def test_overlaps_and_gaps_are_refused(made, tmp_path, chosen, message):
    pieces = split(made.path, 4, tmp_path / "parts")
    with pytest.raises(InputError, match=message) as error:
        merge([pieces[i].path for i in chosen], tmp_path / "no")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts"]


def test_parts_that_overlap_are_refused(made, tmp_path):
    halves, thirds = split(made.path, 2, tmp_path / "halves"), split(made.path, 3, tmp_path / "thirds")
    for a, b in itertools.product(halves, thirds):
        if a.path.name == b.path.name:
            with pytest.raises(InputError, match="overlap: sequences"):
                merge([a.path, b.path], tmp_path / "no")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float32"}, 'its dtype differs: "float32" instead of "int8"'),
        ({"hooks": HOOKS[:1]}, "its hooks differs"),
        ({"context_length": 8}, "its context length differs: 8 instead of 16"),
        ({"transformer": TinyLlama(spoilt=True)}, "its transformer differs"),
        ({"exclude_norm_above": 10.0}, "its exclusions differs"),
    ],
)
def test_incompatible_stores_are_refused(made, tmp_path, settings, message):
    other = harvest(tmp_path / "stores", **{"dtype": "int8", "seed": 1, "max_tokens": 256, **settings}).ensure()
    with pytest.raises(InputError, match=message) as error:
        merge([made.path, other.path], tmp_path / "no")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_cut_or_is_there_already_is_refused(made, tmp_path):
    for parts in (0, 5):
        with pytest.raises(InputError, match=f"has 4 shards: it can be cut into 1 to 4 parts, not {parts}"):
            split(made.path, parts, tmp_path / "parts")
    (tmp_path / "there").mkdir()
    split(made.path, 2, tmp_path / "there")  # an empty folder is nothing
    before = (tmp_path / "there" / "part-00000" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="there is there already: give another folder with --to"):
        split(made.path, 2, tmp_path / "there")
    assert (tmp_path / "there" / "part-00000" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError, match=r"nothing is no activation store"):
        split(tmp_path / "nothing", 2, tmp_path / "no")


def test_a_part_without_rows_is_refused(tmp_path):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(length=17, rare=LOUD)}
    store = harvest(tmp_path / "stores", **settings).ensure()
    manifest = json.loads((store.path / "manifest.json").read_text())
    manifest["shards"][1]["counts"]["rows"] = 0  # as where all its rows were excluded
    (store.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"part 1 of .* would have no rows: cut it into fewer parts"):
        split(store.path, 2, tmp_path / "parts")


def test_counts_and_outliers_add_up(tmp_path):
    settings = {"transformer": TinyLlama(spoilt=True), "text": RandomText(rare=LOUD), "exclude_norm_above": 10.0}
    store = harvest(tmp_path / "stores", **settings).ensure()
    pieces = split(store.path, 4, tmp_path / "parts")
    assert [piece.manifest.counts.norm_above_limit for piece in pieces] == [2, 1, 2, 2]  # sequences 3, 13; 23; 33, 43; 53, 63
    again = merge([piece.path for piece in pieces], tmp_path / "again")
    assert again.manifest.counts == store.manifest.counts
