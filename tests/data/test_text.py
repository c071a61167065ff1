import json
from pathlib import Path

import pytest

from sae_lightning.data.text import PIECE, Documents, HubText, LocalText, PythonDocs
from sae_lightning.errors import InputError
from sae_lightning.transformers.huggingface import HuggingFace
from tests.transformers.tiny_gpt2 import SENTENCES, save_parquet, save_tiny_gpt2

END = 0
"""The tiny GPT-2's <|endoftext|>: its BOS and its EOS."""


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HuggingFace:
    folder = tmp_path_factory.mktemp("transformer")
    save_tiny_gpt2(folder)
    return HuggingFace(str(folder))


class Given(Documents):
    name = "given"

    def __init__(self, documents: list, prepend_bos: bool | None = None):
        super().__init__(prepend_bos)
        self.given = documents

    def identity(self):
        return {}

    def check(self):
        pass

    def documents(self):
        return iter(self.given)


def ids_of(transformer: HuggingFace, texts: list[str]) -> list[int]:
    return [i for text in texts for i in [*transformer.tokenizer()(text)["input_ids"], END]]


def test_documents_are_joined_by_eos_and_cut(gpt2: HuggingFace):
    stream = ids_of(gpt2, SENTENCES)
    found = list(Given(SENTENCES).sequences(gpt2, 8, 0, 0))
    assert found == [stream[i : i + 8] for i in range(0, len(stream) - 7, 8)]
    assert list(Given(SENTENCES).sequences(gpt2, 8, 3, 5)) == found[3:]


def test_each_sequence_starts_with_bos_where_it_is_wanted(gpt2: HuggingFace):
    stream = ids_of(gpt2, SENTENCES)
    found = list(Given(SENTENCES, prepend_bos=True).sequences(gpt2, 8, 0, 0))
    assert found == [[END, *stream[i : i + 7]] for i in range(0, len(stream) - 6, 7)]


def test_tokenised_documents_are_packed_or_taken_as_they_are(gpt2: HuggingFace):
    whole = [list(range(10, 18)), list(range(20, 28))]
    assert list(Given(whole).sequences(gpt2, 8, 0, 0)) == whole
    # 5 ids and EOS, 4 ids which end with EOS themselves, 6 ids and EOS
    given = [[1, 2, 3, 4, 5], [6, 7, 8, END], [9, 10, 11, 12, 13, 14]]
    assert list(Given(given).sequences(gpt2, 8, 0, 0)) == [[1, 2, 3, 4, 5, END, 6, 7], [8, END, 9, 10, 11, 12, 13, 14]]


def test_ids_of_another_vocabulary_and_contexts_that_do_not_fit(gpt2: HuggingFace):
    with pytest.raises(InputError, match="token id 300, but the vocabulary"):
        list(Given([[1, 300]]).sequences(gpt2, 8, 0, 0))
    with pytest.raises(InputError, match="32 positions"):
        list(Given(SENTENCES).sequences(gpt2, 33, 0, 0))
    with pytest.raises(InputError, match="2 or more"):
        list(Given(SENTENCES).sequences(gpt2, 1, 0, 0))


def test_local_files_of_all_kinds_hold_the_same_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text(SENTENCES[0], encoding="utf-8")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n\n" for text in SENTENCES[1:4]), encoding="utf-8")
    save_parquet(tmp_path / "deeper" / "c.parquet", text=[*SENTENCES[4:6], None, *SENTENCES[6:]])
    (tmp_path / "README.md").write_text("not a text")
    for paths in ([str(tmp_path)], [str(tmp_path / "*.txt"), str(tmp_path / "b.jsonl"), str(tmp_path / "**" / "*.parquet")]):
        text = LocalText(paths)
        text.check()
        assert list(text.documents()) == SENTENCES


def test_a_long_txt_file_is_cut_at_a_line_end(tmp_path: Path):
    content = "".join(f"line number {i}\n" for i in range(2 * PIECE // 16))
    (tmp_path / "long.txt").write_text(content)
    pieces = list(LocalText([str(tmp_path / "long.txt")]).documents())
    assert len(pieces) > 1
    assert all(piece.endswith("\n") for piece in pieces)
    assert "".join(map(str, pieces)) == content


def test_local_token_ids(tmp_path: Path, gpt2: HuggingFace):
    save_parquet(tmp_path / "ids.parquet", input_ids=[[1, 2, 3, 4], [5, 6, 7, 8]])
    text = LocalText([str(tmp_path / "ids.parquet")], column="input_ids")
    assert list(text.sequences(gpt2, 4, 0, 0)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_the_identity_of_local_files_is_their_content(tmp_path: Path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("the same")
    one, two = (LocalText([str(tmp_path / folder)]) for folder in ("one", "two"))
    assert one.identity() == two.identity()
    (tmp_path / "two" / "a.txt").write_text("another")
    assert one.identity() != two.identity()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "no text at"),
        ("book.pdf", b"%PDF", "must end in .txt"),
        ("bad.txt", b"caf\xe9", "is not UTF-8"),
        ("bad.jsonl", b'{"text": "a"', "line 1 is not JSON"),
        ("other.jsonl", b'{"body": "a"}', "line 1 has no 'text' but body: set data.text.column"),
        ("number.jsonl", b'{"text": 3}', "neither a string nor a list of token ids but int"),
        ("bad.parquet", b"PAR1", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_one_line_at_once(tmp_path: Path, name: str, content: bytes | None, said: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        LocalText([str(tmp_path / name)]).check()
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_column_is_named_beside_those_that_are_there(tmp_path: Path):
    save_parquet(tmp_path / "a.parquet", body=["x"], title=["y"])
    with pytest.raises(InputError, match="no column 'text' but body, title"):
        LocalText([str(tmp_path)]).check()
    with pytest.raises(InputError, match="no column 'text': it has body, title"):
        HubText(str(tmp_path)).check()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_local_folder_stands_for_a_data_set_of_the_hub(tmp_path: Path, gpt2: HuggingFace, streaming: bool):
    save_parquet(tmp_path / "set" / "train.parquet", text=SENTENCES, input_ids=[list(range(i, i + 8)) for i in range(9)])
    text = HubText(str(tmp_path / "set"), streaming=streaming)
    text.check()
    assert list(text.sequences(gpt2, 8, 1, 0)) == list(Given(SENTENCES).sequences(gpt2, 8, 1, 0))
    tokens = HubText(str(tmp_path / "set"), column="input_ids", is_tokenized=True, streaming=streaming)
    assert list(tokens.sequences(gpt2, 8, 7, 0)) == [list(range(7, 15)), list(range(8, 16))]
    with pytest.raises(InputError, match="set is_tokenized=false"):
        HubText(str(tmp_path / "set"), is_tokenized=True, streaming=streaming).check()
    with pytest.raises(InputError, match="set is_tokenized=true"):
        HubText(str(tmp_path / "set"), column="input_ids", streaming=streaming).check()


def test_a_data_set_without_network_is_one_quick_line(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    from sae_lightning.transformers import hub

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    hub.reachable.cache_clear()
    for streaming in (True, False):
        with pytest.raises(InputError, match="the hub cannot be reached for data set 'Skylion007/openwebtext'") as error:
            HubText("Skylion007/openwebtext", streaming=streaming).check()
        assert "\n" not in str(error.value)
    hub.reachable.cache_clear()
    with pytest.raises(InputError, match="does not exist"):
        HubText("./no/such/folder").check()


def test_python_documents_itself():
    text = PythonDocs()
    text.check()
    documents = text.documents()
    topics = [next(documents) for _ in range(60)]
    assert sum(map(len, topics)) > 100_000
    assert any("assert" in topic for topic in topics)
    assert text.identity()["python"].count(".") == 2
