"""What single latents know of a text: sparse probing."""

import csv
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.evaluation.steps import check_widths
from sae_lightning.evaluation.texts import beginning, rows_of
from sae_lightning.inference import InferenceSAE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

OWN_TEXTS = Path(__file__).parent / "probing_texts"
LATENTS = (1, 2, 5, 20)
FEWEST = 4
"""Texts of a class: two to learn from, two to be asked about."""


class Labelled(NamedTuple):
    """A task: texts and their classes."""

    name: str
    texts: list[str]
    labels: list[str]


class Halves(NamedTuple):
    """Numbers of texts of one class and of as many others, the class first: half to learn from, half to be asked about."""

    train: Int64[np.ndarray, " n"]
    test: Int64[np.ndarray, " m"]


class Probing:
    """Accuracy of logistic regression on the best few latents, of texts that it was not fitted on (Gurnee et al. 2023, arXiv:2305.01610).

        probing_accuracy_k = from the k latents whose class means differ most on the training half;   k = 1, 2, 5, 20
        probing_raw_accuracy_k = the same from k dimensions of the activations;   probing_raw_accuracy = from all of them

    A text is the mean of its latents (activations) over its tokens, special ones left out; where held-out sequences begin with BOS, so does
    it. Each number has mean 0 and variance 1 on the training half; scikit-learn's L2 penalty of weight 1. A class is parted from as many
    texts of all others, drawn once, so that chance is 1/2: with two classes once, with more for each of them. Means over classes, then over
    tasks. `paths`: csv files with columns text and label, a task each; None: sentiment, tense and topic of 60 sentences each, which come
    with the package. `batch_tokens` in a forward pass. Data without a transformer gives {}.

    Errors: InputError for a file that is none, and where scikit-learn is missing.
    """

    def __init__(self, paths: list[str] | None = None, batch_tokens: int = 2048):
        if batch_tokens < 1:
            raise InputError(f"evaluate.probing.batch_tokens is {batch_tokens}: give a positive number of tokens")
        check_scikit_learn("probing")
        files = sorted(OWN_TEXTS.glob("*.csv")) if paths is None else [Path(path).expanduser() for path in paths]
        if not files:
            raise InputError("evaluate.probing.paths is empty: name csv files with columns text and label, or set it to null")
        self.tasks, self.batch_tokens = [_read(file) for file in files], batch_tokens
        self._raw: tuple[RowsDataModule, dict[str, float]] | None = None

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        if data.transformer is None:
            return {}
        check_widths(sae, data)
        is_new = self._raw is None or self._raw[0] is not data
        latents, raw = [], []
        for task in self.tasks:
            pooled, activations = self._pooled(sae, data, task)
            halves = _halves(task)
            latents.append(_accuracies("probing_accuracy", pooled, halves, LATENTS))
            if is_new:
                raw.append(_accuracies("probing_raw_accuracy", activations, halves, (*LATENTS, None)))
        if is_new:
            self._raw = data, _mean(raw)
        assert self._raw is not None
        return _mean(latents) | self._raw[1]

    def _pooled(self, sae: InferenceSAE, data: RowsDataModule, task: Labelled) -> "tuple[csr_array, Float[np.ndarray, 'texts d_in']]":
        """Mean latents and mean activations of each text."""
        from scipy.sparse import csr_array, vstack

        ids = data.transformer.tokenizer()(task.texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        start = beginning(data)
        latents, activations = [], []
        for number, rows in enumerate(rows_of(data, [start + list(own) for own in ids], self.batch_tokens, sae.b_enc.device)):
            if not len(rows):
                raise InputError(f"{task.name}: text {number + 1} has no token but special ones: leave it out")
            with torch.no_grad():
                latents.append(csr_array((sae.encode(rows).sum_per_latent() / len(rows)).cpu().numpy()[None]))
            activations.append(rows.mean(0).cpu().numpy())
        return csr_array(vstack(latents)), np.stack(activations)


def check_scikit_learn(evaluation: str) -> None:
    """Errors: InputError where it is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError(f"evaluate={evaluation} needs scikit-learn: pip install 'sae_lightning[probing]'")


def _accuracies(
    name: str, features: "csr_array | Float[np.ndarray, 'texts n']", problems: Sequence[Halves], best: Sequence[int | None]
) -> dict[str, float]:
    """Mean over the problems, for each number of best columns; None: all of them."""
    found: dict[str, list[float]] = {name if k is None else f"{name}_{k}": [] for k in best}
    for train, test in problems:
        of_class, of_others = (features[half].mean(axis=0) for half in np.split(train, 2))
        order = np.argsort(-np.abs(of_class - of_others), kind="stable")
        for k, accuracies in zip(best, found.values(), strict=True):
            accuracies.append(_accuracy(_columns(features, train, order[:k]), _columns(features, test, order[:k])))
    return {key: float(np.mean(accuracies)) for key, accuracies in found.items()}


def _accuracy(train: Float[np.ndarray, "n k"], test: Float[np.ndarray, "m k"]) -> float:
    """Of both arrays the first half is of the class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    is_class = [np.arange(len(rows)) < len(rows) // 2 for rows in (train, test)]
    return float(probe.fit(train, is_class[0]).score(test, is_class[1]))


def _columns(
    features: "csr_array | Float[np.ndarray, 'texts n']", rows: Int64[np.ndarray, " m"], columns: Int64[np.ndarray, " k"]
) -> Float[np.ndarray, "m k"]:
    chosen = features[rows][:, columns]
    return (chosen if isinstance(chosen, np.ndarray) else chosen.toarray()).astype(np.float64)


def _halves(task: Labelled) -> list[Halves]:
    """Of two classes the first against the second; of more each against the others."""
    labels, classes = np.array(task.labels), sorted(set(task.labels))
    problems = []
    for name in classes[:1] if len(classes) == 2 else classes:
        own, others = (np.flatnonzero(chosen) for chosen in (labels == name, labels != name))
        own, others = (part[torch.randperm(len(part), generator=generator(0, "probing", name)).numpy()] for part in (own, others))
        n, half = min(len(own), len(others)), min(len(own), len(others)) // 2
        problems.append(Halves(np.concatenate([own[:half], others[:half]]), np.concatenate([own[half:n], others[half:n]])))
    return problems


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([values[name] for values in scores])) for name in scores[0]}


def _read(file: Path) -> Labelled:
    """Errors: InputError for what is no task."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"evaluate.probing.paths: cannot read {file} ({error}): give a csv file in UTF-8") from error
    for number, row in enumerate(rows, 1):
        if not row.get("text") or not row.get("label"):
            raise InputError(
                f"{file}: row {number} has no {'label' if row.get('text') else 'text'}: give columns text and label, both filled"
            )
    labels = [row["label"] for row in rows]
    few = next((label for label in labels if labels.count(label) < FEWEST), None)
    if few is not None or len(set(labels)) < 2:
        what = "it has fewer than two classes" if few is None else f"class '{few}' has {labels.count(few)}"
        raise InputError(f"{file}: {what}: give at least {FEWEST} texts of each of two classes or more")
    return Labelled(str(file), [row["text"] for row in rows], labels)
