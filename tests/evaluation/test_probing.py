import csv
import importlib.util
import random

import pytest
import torch
from torch.testing import assert_close

from tests.evaluation.words import BOS, EMBEDDED, Words

COMMON = ["one", "two", "three", "four", "five", "six"]
WORDS = [*COMMON, "red", "green", "blue"]
KS = (1, 2, 5, 20)


def task(folder, labels, mark=lambda label: [label], name="task.csv"):
    """A csv file of texts of five common words, and whatever `mark` puts somewhere among them."""
    draws = random.Random(0)
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for label in labels:
            words = draws.choices(COMMON, k=draws.randint(5, 9)) + mark(label)
            draws.shuffle(words)
            writer.writerow([" ".join(words), label])
    return str(folder / name)


@pytest.fixture
def data(rows):
    ids = torch.tensor([[BOS, 2, 3]])
    return rows(torch.ones(3, 16), transformer=Words(WORDS), hook=EMBEDDED, tokens=ids, special=ids == BOS)


@pytest.fixture
def by_word(sae, data):
    """by_word(words): a latent for each of them, which is active at that word alone."""

    def make(words):
        detectors = torch.linalg.pinv(data.transformer.embeddings()).T  # row i: 1 at token i, 0 at the others
        return sae(detectors[[2 + WORDS.index(word) for word in words]], threshold=0.5)

    return make


def probing(*args, **kwargs):
    from sae_lightning.evaluation.probing import Probing

    return Probing(*args, **kwargs)


def test_a_planted_latent_is_found_and_its_absence_is_seen(tmp_path, data, by_word):
    path = task(tmp_path, ["red", "green"] * 30)
    values = probing([path])(by_word(WORDS), data)
    assert list(values) == [*(f"probing_accuracy_{k}" for k in KS), *(f"probing_raw_accuracy_{k}" for k in KS), "probing_raw_accuracy"]
    assert [values[f"probing_accuracy_{k}"] for k in KS] == [1] * 4
    assert values["probing_raw_accuracy"] == 1
    assert values["probing_raw_accuracy_1"] < 1  # no dimension of random embeddings is a word
    blind = probing([path])(by_word(COMMON), data)
    assert max(blind[f"probing_accuracy_{k}"] for k in KS) < 0.75
    assert {name: value for name, value in blind.items() if "raw" in name} == {name: values[name] for name in values if "raw" in name}


def test_labels_that_nothing_follows_from_are_not_found(tmp_path, data, by_word):
    """200 texts to be asked about: chance is 0.5 ± 0.035."""
    values = probing([task(tmp_path, ["red", "green"] * 200, mark=lambda label: [])])(by_word(WORDS), data)
    assert all(0.35 < value < 0.65 for value in values.values())


def test_chance_is_a_half_however_many_texts_a_class_has(tmp_path, rows, data, by_word):
    """Equal texts, 8 of one class and 40 of the other, or 8, 20 and 30 of three."""
    for labels in (["a"] * 8 + ["b"] * 40, ["a"] * 8 + ["b"] * 20 + ["c"] * 30):
        path = tmp_path / "same.csv"
        path.write_text("text,label\n" + "".join(f"one two,{label}\n" for label in labels), encoding="utf-8")
        assert set(probing([str(path)])(by_word(WORDS), data).values()) == {0.5}


def test_each_of_several_classes_against_the_others(tmp_path, data, by_word):
    """A latent for red and one for green: with both, every class is parted; with red's alone, only red is always."""
    path = task(tmp_path, ["red", "green", "blue"] * 20)
    evaluation = probing([path])
    both = evaluation(by_word(["red", "green", "one"]), data)
    assert both["probing_accuracy_2"] == 1 > both["probing_accuracy_1"]
    red = evaluation(by_word(["red"]), data)
    # Red's latent: red 1; green and blue are told from a mixture whose red half is seen: half of the others are right, and their own.
    assert 1 / 3 + 2 / 3 * 0.65 < red["probing_accuracy_1"] < 1 / 3 + 2 / 3 * 0.85
    assert red["probing_accuracy_20"] == red["probing_accuracy_1"]


def test_the_mean_of_several_tasks_in_batches_of_any_size(tmp_path, data, by_word):
    easy, hard = task(tmp_path, ["red", "green"] * 30, name="easy.csv"), task(tmp_path, ["red", "green"] * 30, lambda label: [], "hard.csv")
    one, other, both = (probing(paths)(by_word(WORDS), data) for paths in ([easy], [hard], [easy, hard]))
    for name, value in both.items():
        assert_close(value, (one[name] + other[name]) / 2)
    assert probing([easy, hard], batch_tokens=1)(by_word(WORDS), data) == both


def test_accuracy_is_that_of_scikit_learn_on_mean_latents(tmp_path, data, by_word):
    """The whole of it once more, in plain NumPy, but for which texts are asked about."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from sae_lightning.evaluation.probing import _halves, _read

    path = tmp_path / "counts.csv"
    draws = random.Random(1)
    texts = [" ".join(draws.choices(COMMON, weights=[2 + i % 2, 1, 1, 1, 1, 2 - i % 2], k=9)) for i in range(80)]
    path.write_text("text,label\n" + "".join(f"{text},{i % 2}\n" for i, text in enumerate(texts)), encoding="utf-8")
    ((train, test),) = _halves(_read(path))
    assert sorted([*train, *test]) == list(range(80))
    shares = np.array([[text.split().count(word) / 9 for word in COMMON] for text in texts])
    is_class = np.arange(80) % 2 == 0  # label 0 comes first
    difference = np.abs(shares[train][is_class[train]].mean(0) - shares[train][~is_class[train]].mean(0))
    values = probing([str(path)])(by_word(COMMON), data)
    for k in (1, 2, 5):
        best = np.argsort(-difference, kind="stable")[:k]
        mean, std = shares[train][:, best].mean(0), shares[train][:, best].std(0)
        fitted = LogisticRegression(max_iter=1000).fit((shares[train][:, best] - mean) / std, is_class[train])
        assert_close(values[f"probing_accuracy_{k}"], fitted.score((shares[test][:, best] - mean) / std, is_class[test]))
    assert 0.5 < values["probing_accuracy_2"] < 1


def test_nothing_without_a_transformer(rows, sae):
    assert probing()(sae(torch.eye(4)), rows(torch.ones(3, 4))) == {}


def test_the_texts_of_the_package_are_balanced():
    for own in probing().tasks:
        assert len(set(own.texts)) == len(own.texts) == 60
        assert sorted(own.labels.count(label) for label in set(own.labels)) == [30, 30]


def test_bad_input_is_one_line(tmp_path, data, by_word, monkeypatch):
    from sae_lightning.errors import InputError

    file = tmp_path / "task.csv"
    for content, message in (
        ("", "fewer than two classes"),
        ("text,class\na,b\n", "row 1 has no label"),
        ("text,label\na,b\n,c\n", "row 2 has no text"),
        ("text,label\n" + "a,b\n" * 9, "fewer than two classes"),
        ("text,label\n" + "a,b\n" * 9 + "a,c\n" * 3, "class 'c' has 3: give at least 4 texts of each"),
        (b"text,label\n\xff,b\n", "give a csv file in UTF-8"),
    ):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(InputError, match=message) as error:
            probing([str(file)])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"evaluate.probing.paths: cannot read .*nowhere.csv"):
        probing([str(tmp_path / "nowhere.csv")])
    with pytest.raises(InputError, match=r"evaluate.probing.paths is empty"):
        probing([])
    with pytest.raises(InputError, match=r"evaluate.probing.batch_tokens is 0"):
        probing(batch_tokens=0)
    file.write_text("text,label\n" + "one,a\ntwo,b\n" * 4 + "<s>,b\n", encoding="utf-8")
    with pytest.raises(InputError, match="text 9 has no token but special ones"):
        probing([str(file)])(by_word(WORDS), data)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs scikit-learn: pip install 'sae_lightning\[probing\]'"):
        probing()
