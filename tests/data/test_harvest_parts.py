"""A store harvested in parts, by several processes, is the store that one process harvests."""

import itertools
import json
import logging
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lightning.data.harvest import Harvest, Harvesting
from sae_lightning.data.image_harvest import ImageHarvest
from sae_lightning.data.images import ImageFolder
from sae_lightning.data.packing import located, packed
from sae_lightning.data.parts import merge, split
from sae_lightning.data.places import PlacedText
from sae_lightning.data.sampled_text import SampledText
from sae_lightning.data.store import Store
from sae_lightning.data.text import HubText, LocalText
from sae_lightning.errors import InputError
from sae_lightning.transformers.huggingface import HuggingFace
from sae_lightning.transformers.vision import HuggingFaceVision
from tests.data.tiny import files, harvest
from tests.transformers.tiny_gpt2 import SENTENCES, save_parquet, save_tiny_gpt2
from tests.transformers.tiny_vision import save_pictures, save_tiny

fork = multiprocessing.get_context("fork")
forks = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: threads of torch; the child does not use them
CONTEXT, SHARDS = 16, 9


class Tokenizer:
    """Counts the texts that the real one is given."""

    def __init__(self, real: Any, counter: Any):
        self.real, self.counter = real, counter

    def __call__(self, texts: Any, **settings: Any) -> Any:
        with self.counter.get_lock():
            self.counter.value += len(texts) if isinstance(texts, list) else 0
        return self.real(texts, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class Counting(HuggingFace):
    """`tokenised`: how many texts its tokenizer was given, by all processes that were forked since."""

    @cached_property
    def tokenised(self) -> Any:
        return fork.Value("i", 0)

    def tokenizer(self) -> Any:
        return Tokenizer(super().tokenizer(), self.tokenised)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer and 400 documents: short, long, empty."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_gpt2(folder / "gpt2")
    chance = random.Random(0)
    texts = [". ".join(chance.choices(SENTENCES, k=chance.choice([0, 1, 1, 1, 7]))) for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


@pytest.fixture(scope="module")
def gpt2(home: Path) -> Counting:
    return Counting(str(home / "gpt2"))


def of_documents(gpt2: HuggingFace, home: Path, stores: Path, shards: int = SHARDS, **settings: Any) -> Harvest:
    """16 sequences a shard."""
    defaults = {"context_length": CONTEXT, "max_tokens": 16 * CONTEXT * shards - 3 * CONTEXT, "shard_rows": 256, "forward_batch_size": 8}
    text = settings.pop("text", None) or LocalText([str(home / "text.jsonl")])
    return Harvest(gpt2, text, hooks=["transformer.h.0"], stores=stores, **{**defaults, **settings})


def in_parts(whole: Harvesting, parts: int, order: Any = None) -> list[Store]:
    made = {part: whole.part(part, parts).ensure() for part in order or range(parts)}
    return [made[part] for part in range(parts)]


def merged(whole: Harvesting, stores: list[Store]) -> Path:
    return merge([store.path for store in stores], whole.path).path


# -- the same rows ------------------------------------------------------------------------------------------------------


def _documents(gpt2: HuggingFace, home: Path, stores: Path) -> Harvesting:
    return of_documents(gpt2, home, stores)


def _samples(gpt2: HuggingFace, home: Path, stores: Path) -> Harvesting:
    return of_documents(gpt2, home, stores, shards=7, text=SampledText(batch_size=24))


def _images(gpt2: HuggingFace, home: Path, stores: Path) -> Harvesting:
    if not (home / "photos").exists():
        save_tiny("dinov2", home / "encoder")
        save_pictures(home / "photos", [f"{i}.png" for i in range(31)])
    encoder = HuggingFaceVision(str(home / "encoder"))
    return ImageHarvest(encoder, ImageFolder(str(home / "photos")), max_images=31, shard_rows=64, forward_batch_size=2, stores=stores)


@pytest.mark.parametrize("make", [_documents, _samples, _images])
def test_one_process_and_seven_parts_give_the_same_store_to_the_byte(make, gpt2, home, tmp_path):
    one, seven = make(gpt2, home, tmp_path / "one"), make(gpt2, home, tmp_path / "seven")
    whole = one.ensure()
    parts = in_parts(seven, 7, order=[6, 0, 3, 5, 1, 4, 2])
    assert {store.path.parent for store in parts} == {seven.path.with_name(f"{seven.path.name}.parts")}
    assert [store.path.name for store in parts] == [f"part-{i:05d}-of-00007" for i in range(7)]
    assert sum(store.rows for store in parts) == whole.rows
    assert files(merged(seven, parts)) == files(whole.path)
    for i, piece in enumerate(split(whole.path, 7, tmp_path / "split")):
        assert files(piece.path) == files(parts[i].path)
    seven.transformer = make(gpt2, home, tmp_path).transformer  # a training finds it, and nothing is loaded
    assert seven.ensure().rows == whole.rows
    (seven.path / "shard-00002.safetensors").unlink()
    assert files(seven.ensure().path) == files(whole.path)


def test_rows_of_every_part_are_judged_by_the_first_ones_of_the_whole(tmp_path, monkeypatch):
    """8 sequences have 120 rows: the norms of the first 300 are in part 0 of 2 and of 4."""
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 300)
    whole = harvest(tmp_path / "one", exclude_norm_above=1.3).ensure()
    source = harvest(tmp_path / "parts", exclude_norm_above=1.3)
    parts = in_parts(source, 4)
    assert {tuple(part.manifest.median_norms.values()) for part in parts} == {tuple(whole.manifest.median_norms.values())}
    assert files(merged(source, parts)) == files(whole.path)
    assert whole.manifest.counts.norm_above_limit > 0


def test_parts_of_other_numbers_join_where_they_fit(gpt2, home, tmp_path):
    source = of_documents(gpt2, home, tmp_path / "stores")  # 9 shards: thirds are of 3, ninths of 1
    whole = of_documents(gpt2, home, tmp_path / "one").ensure()
    first, last = (source.part(part, 3).ensure().path for part in (0, 2))
    ninths = [source.part(part, 9).ensure().path for part in range(2, 6)]
    assert files(merge([first, *ninths[1:], last], tmp_path / "mixed").path) == files(whole.path)
    with pytest.raises(
        InputError, match=r"part-00000-of-00003 and .*part-00002-of-00009 overlap: sequences 0 to 47 of 141 and sequences 32 to 47"
    ):
        merge([first, ninths[0]], tmp_path / "no")


def test_a_text_that_ends_early(gpt2, home, tmp_path, caplog):
    lines = (home / "text.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short.jsonl").write_text("".join(lines[:65]))
    one, seven = (of_documents(gpt2, home, tmp_path / name, text=LocalText([str(tmp_path / "short.jsonl")])) for name in ("one", "seven"))
    whole = one.ensure()
    ended = [message for message in caplog.messages if "ended after" in message]
    parts = in_parts(seven, 7, order=[5, 4, 3, 6, 0, 1, 2])
    rows = [store.rows for store in parts]
    empty = rows.index(0)
    assert 0 < rows[empty - 1] < rows[2] and rows[empty:] == [0] * (7 - empty) and empty < 7
    assert "of this part" in caplog.text
    assert seven.part(6, 7).is_complete()
    assert files(merged(seven, parts)) == files(whole.path)
    assert ended and seven.ensure().sequences == whole.sequences
    again = split(parts[empty - 1].path, 1, tmp_path / "again")
    assert merge([*[store.path for store in parts[: empty - 1]], again[0].path, *[store.path for store in parts[empty:]]], tmp_path / "x")


# -- lost and killed ----------------------------------------------------------------------------------------------------


@forks
def test_parts_that_are_killed_go_on_and_end_equal(gpt2, home, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)
    monkeypatch.setattr("sae_lightning.data.places.SECONDS_BETWEEN_WRITES", 0.0)
    monkeypatch.setattr("sae_lightning.data.packing.AT_ONCE", 300)

    class Slow(LocalText):
        def numbered(self, first: int) -> Iterator[Any]:
            for document in super().numbered(first):
                time.sleep(0.001)
                yield document

    whole = of_documents(gpt2, home, tmp_path / "one").ensure()
    source = of_documents(gpt2, home, tmp_path / "killed", text=Slow([str(home / "text.jsonl")]))
    chance, left, kills = random.Random(0), [0, 1, 2], 0
    while left:
        processes = {part: fork.Process(target=source.part(part, 3).ensure) for part in left}
        for process in processes.values():
            process.start()
        for process in processes.values():
            process.join(chance.uniform(0.02, 0.06) * (kills + 1))
        for part, process in processes.items():
            if process.exitcode is None:
                process.kill()
                kills += 1
            process.join()
            assert process.exitcode in (0, -9)
            if process.exitcode == 0:
                left.remove(part)
    assert kills >= 4
    assert files(merged(source, in_parts(source, 3))) == files(whole.path)


def test_a_lost_part_is_named_and_harvested_again(gpt2, home, tmp_path):
    source = of_documents(gpt2, home, tmp_path)
    before = [files(store.path) for store in in_parts(source, 4)]
    paths = [source.part(part, 4).path for part in range(4)]
    shutil.rmtree(paths[2])
    with pytest.raises(InputError, match=r"sequences 80 to 111 are in none; part 2 of 4 is missing: .*data.part=2 data.parts=4"):
        merge([path for path in paths if path.exists()], source.path)
    shutil.rmtree(paths[3])
    with pytest.raises(InputError, match=r"is the place of all 141 sequences, and these are 0 to 79: parts 2-3 of 4 are missing"):
        merge(paths[:2], source.path)
    assert merge(paths[:2], tmp_path / "elsewhere").identity["share"] == {"first": 0, "stop": 80, "of": 141}
    assert [files(source.part(part, 4).ensure().path) for part in range(4)] == before
    (paths[1] / "shard-00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"part-00001-of-00004/shard-00001\.safetensors is missing"):
        merge(paths, source.path)
    assert not source.part(1, 4).is_complete()
    assert files(source.part(1, 4).ensure().path) == before[1]


@pytest.mark.parametrize(
    ("part", "parts", "settings", "said"),
    [
        (
            0,
            10,
            {},
            "data.parts=10 is more than the 9 shards that there will be, and a part is whole shards: lower data.parts, or data.shard_rows",
        ),
        (3, 3, {}, "data.part=3 is none of data.parts=3: give 0 to 2"),
        (-1, 3, {}, "data.part=-1 is none"),
        (0, 0, {}, "data.parts is 0"),
        (1, 3, {"shard_rows": 512}, "another data.shard_rows or data.forward_batch_size: give those, delete it or"),
    ],
)
def test_parts_that_there_are_not_and_other_cuts_are_refused(part, parts, settings, said, gpt2, home, tmp_path):
    if settings:
        of_documents(gpt2, home, tmp_path).part(1, 3).ensure()
    with pytest.raises(InputError, match=said):
        of_documents(gpt2, home, tmp_path, **settings).part(part, parts).ensure()


def test_one_part_is_the_whole(gpt2, home, tmp_path):
    source = of_documents(gpt2, home, tmp_path, shards=2)
    assert source.part(0, 1).path == source.path
    assert "share" not in source.part(0, 1).ensure().identity


# -- where sequences begin ----------------------------------------------------------------------------------------------

ids = st.lists(st.integers(0, 299), max_size=9)
texts = st.lists(st.sampled_from(SENTENCES), max_size=2).map(" ".join)


@given(documents=st.lists(ids | texts, max_size=8), context=st.integers(2, 6), prepend_bos=st.booleans())
def test_a_sequence_is_found_again_where_it_began(gpt2, documents, context, prepend_bos):
    transformer = HuggingFace(gpt2.path)
    expected = list(packed(documents, transformer, context, prepend_bos))
    found = list(located(documents, transformer, context, prepend_bos))
    assert [sequence for _, sequence in found] == expected
    for number, (place, _) in enumerate(found):
        assert list(located(documents[place.document :], transformer, context, prepend_bos, place)) == found[number:]


def test_what_lies_before_a_part_is_tokenised_once(gpt2, home, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lightning.data.packing.AT_ONCE", 1)  # one by one
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)
    source = of_documents(gpt2, home, tmp_path)
    counts = []
    for part in (2, 2, 1, 0):
        if source.part(part, 3).is_complete():
            shutil.rmtree(source.part(part, 3).path)
        before = gpt2.tokenised.value
        source.part(part, 3).ensure()
        counts.append(gpt2.tokenised.value - before)
    print(f"documents tokenised by part 2, part 2 again, part 1, part 0: {counts}")
    (first, *_) = (
        place[1] for place in json.loads((source.part(2, 3).path.parent / "places.json").read_text())["places"] if place[0] == 96
    )
    assert first < counts[0] - counts[1] <= first + 4  # what is before it, and its first sequence to know it again, once
    before = gpt2.tokenised.value
    of_documents(gpt2, home, tmp_path / "one").ensure()
    assert sum(counts[1:]) <= gpt2.tokenised.value - before + 2 * 8  # each part its own, and the first 8 sequences for their norms


@pytest.mark.parametrize("is_tokenised", [False, True])
def test_rows_without_a_document_count(is_tokenised, gpt2, home, tmp_path):
    """A data set in the hub's layout is asked to skip."""
    column = [gpt2.tokenizer()(text)["input_ids"] for text in SENTENCES] if is_tokenised else list(SENTENCES)
    for at in (0, 3, 3, 9):
        column.insert(at, None)
    save_parquet(tmp_path / "data" / "train.parquet", text=column)
    text = HubText(str(tmp_path / "data"), is_tokenized=is_tokenised, streaming=is_tokenised)
    expected = list(text.sequences(gpt2, 8, 0, 0))
    for every, start in itertools.product((2, 5), range(len(expected) + 3)):
        placed = PlacedText(text, tmp_path / f"places{every}.json", every)
        assert list(placed.sequences(gpt2, 8, start, 0)) == expected[start:]


def test_a_text_that_has_changed_is_refused_and_a_damaged_file_is_made_anew(gpt2, home, tmp_path):
    class Unnoticed(LocalText):
        """As a data set on the hub may, it changes without a sign."""

        def identity(self) -> dict[str, Any]:
            return {"text": "the same"}

    (tmp_path / "a.jsonl").write_text((home / "text.jsonl").read_text())
    text, path = Unnoticed([str(tmp_path / "a.jsonl")]), tmp_path / "places.json"
    expected = list(text.sequences(gpt2, 8, 0, 0))
    assert list(PlacedText(text, path, 4).sequences(gpt2, 8, 20, 0)) == expected[20:]
    for content in ("", "[]", path.read_text().replace("the same", "another"), path.read_text()[:-9]):
        path.write_text(content)
        assert list(PlacedText(text, path, 4).sequences(gpt2, 8, 20, 0)) == expected[20:]
    for changed in ((home / "text.jsonl").read_text().replace("The", "A"), '{"text": "The owl"}\n'):
        (tmp_path / "a.jsonl").write_text(changed)
        for start in (20, 40):
            with pytest.raises(InputError, match="the text 'a' is no longer what it was: sequence 20 is not the one"):
                list(PlacedText(text, path, 4).sequences(gpt2, 8, start, 0))


@forks
def test_of_processes_that_look_for_places_one_does(gpt2, home, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("sae_lightning.data.packing.AT_ONCE", 1)
    monkeypatch.setattr("sae_lightning.data.harvest.ROWS_FOR_MEDIAN", 100)
    monkeypatch.setattr("sae_lightning.data.places.SECONDS_BETWEEN_LOOKS", 0.05)
    source = of_documents(gpt2, home, tmp_path)
    before = gpt2.tokenised.value
    processes = [fork.Process(target=source.part(part, 9).ensure) for part in range(1, 9)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    by_parts, before = gpt2.tokenised.value - before, gpt2.tokenised.value
    whole = of_documents(gpt2, home, tmp_path / "one").ensure()
    of_text = gpt2.tokenised.value - before
    print(f"documents tokenised by eight parts: {by_parts}, by one process that harvests all: {of_text}")
    assert by_parts <= 2 * of_text + 8 * 8
    with caplog.at_level(logging.INFO):
        parts = in_parts(source, 9)
    assert "finding where" not in caplog.text
    assert files(merged(source, parts)) == files(whole.path)
