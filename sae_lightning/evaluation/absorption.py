"""Latents that swallow what another latent stands for: absorption of first letters."""

import logging
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from sae_lightning.data.rows import RowsDataModule, generator
from sae_lightning.errors import InputError
from sae_lightning.evaluation.probing import check_scikit_learn
from sae_lightning.evaluation.steps import check_widths
from sae_lightning.evaluation.texts import beginning, rows_of
from sae_lightning.inference import InferenceSAE

if TYPE_CHECKING:
    from scipy.sparse import csr_array

WORD = re.compile(r"[▁Ġ ]([a-z])[a-z]+")
"""A token that is a whole word, with the space before it."""
BEFORE = "The word"
FEWEST_WORDS, FEWEST_LETTERS, WORST_F1 = 30, 5, 0.5
MOST_MAIN, JUMP = 10, 0.03
COSINE, SHARE = 0.025, 0.4
ENTRIES = 2**25
"""Latents that are held densely at once."""
log = logging.getLogger(__name__)


class Probe(NamedTuple):
    """Parts words of one letter from all others: along a direction of length 1, and what it says of each word."""

    direction: Float[np.ndarray, " d"]
    says: Bool[np.ndarray, " n"]


class Words(NamedTuple):
    """Words by their first letter, what stands at the hook point for each, and what parts the letters."""

    letters: Int64[np.ndarray, " n"]
    is_train: Bool[np.ndarray, " n"]
    x: Float[np.ndarray, "n d"]
    probes: dict[int, Probe]


class Absorption:
    """Words whose first letter a probe reads from the activation, while another latent than the letter's own carries it.

    A word is a token of small letters with its space, in the place of … in "The word …"; x is the activation there. Of each letter with 30
    words or more, at most `words`, those of the smallest token ids; half of them, drawn once, to learn from, the others to be counted.
    Letters that the transformer does not know at this hook point are left out: those whose probe has F1 below 0.5 on the words to be counted.

        probe of a letter: logistic regression on centred x, classes weighted equally, fitted on one half; p its direction, of length 1
        main latents of a letter: the first k by (mean f over its words − mean f over all others), where k grows from 1 on, up to 10, as
        long as logistic regression from k latents gains more than 0.03 in F1 over k − 1, on the half to learn from
        absorbed: the probe is right, the main latents are silent, and the latent of the largest f_j W_dec[j]·p has cos(W_dec[j], p) > 0.025
        and more than 0.4 of (x − b_dec)·p > 0

        absorption = share of absorbed words among those where the probe is right;   absorption_silent = of those with silent main latents
        absorption_main_latents = k;   absorption_probe_f1 = of the probe on the words counted.   Means over letters, `absorption_letters` of them

    After Chanin et al. 2024, arXiv:2409.14507, and SAEBench's measure, which projects where the paper ablates. Simpler than these: no
    examples of spelling before the word; main latents by means, not by an L1 penalty.
    Unlike SAEBench, decoder rows of any length, and b_dec is no part of what latents must explain.

    Data without a transformer gives {}, and so do transcoders, whose latents write elsewhere, and fewer than 5 letters.
    """

    def __init__(self, words: int = 200, batch_tokens: int = 2048):
        if words < FEWEST_WORDS or batch_tokens < 1:
            raise InputError(
                f"evaluate.absorption: words={words} must be {FEWEST_WORDS} or more, and batch_tokens={batch_tokens} must be positive"
            )
        check_scikit_learn("absorption")
        self.words, self.batch_tokens = words, batch_tokens
        self._read: tuple[RowsDataModule, Words] | None = None

    def __call__(self, sae: InferenceSAE, data: RowsDataModule) -> dict[str, float]:
        if data.transformer is None or data.views == "pair":
            return {}
        check_widths(sae, data)
        ids = single_tokens(data.transformer.tokenizer().get_vocab(), data.transformer.special_ids(), self.words)
        if len(ids) < FEWEST_LETTERS:
            log.info("no absorption: %d letters have %d words of one token, and %d must", len(ids), FEWEST_WORDS, FEWEST_LETTERS)
            return {}
        if self._read is None or self._read[0] is not data:
            self._read = data, self._words(data, ids, sae.b_enc.device)
        words = self._read[1]
        W_dec, b_dec = sae.W_dec.cpu().double().numpy(), sae.b_dec.cpu().numpy()
        return scores(words._replace(x=words.x - b_dec), encoded(sae, words.x), W_dec)

    def _words(self, data: RowsDataModule, ids: dict[int, list[int]], device: torch.device) -> Words:
        before = beginning(data) + list(data.transformer.tokenizer()(BEFORE, add_special_tokens=False)["input_ids"])
        sequences = [[*before, token] for own in ids.values() for token in own]
        x = np.stack([rows[-1].cpu().numpy() for rows in rows_of(data, sequences, self.batch_tokens, device)])
        letters = np.repeat(list(ids), [len(own) for own in ids.values()])
        is_train = np.concatenate([half(len(own), letter) for letter, own in ids.items()])
        return Words(letters, is_train, x, {letter: fitted(x, letters == letter, is_train) for letter in ids})


def single_tokens(vocabulary: dict[str, int], special: set[int], most: int) -> dict[int, list[int]]:
    """Of each letter (0: a) with enough words: ids of the first `most` tokens that are words of it."""
    found: dict[int, list[int]] = {letter: [] for letter in range(26)}
    for token, i in sorted(vocabulary.items(), key=lambda item: item[1]):
        if (match := WORD.fullmatch(token)) and i not in special:
            found[ord(match[1]) - ord("a")].append(i)
    return {letter: ids[:most] for letter, ids in found.items() if len(ids) >= FEWEST_WORDS}


def half(n: int, letter: int) -> Bool[np.ndarray, " n"]:
    """Half of n words, the same ones each time."""
    return torch.randperm(n, generator=generator(0, "absorption", letter)).numpy() < n // 2


def fitted(x: Float[np.ndarray, "n d"], is_letter: Bool[np.ndarray, " n"], is_train: Bool[np.ndarray, " n"]) -> Probe:
    """Fitted on the words to learn from, which are centred and divided by one number: E‖x‖² = d."""
    centre = x[is_train].mean(0, dtype=np.float64)
    unit = np.sqrt(np.mean((x[is_train] - centre) ** 2)) or 1.0
    model = _regression().fit((x[is_train] - centre) / unit, is_letter[is_train])
    return Probe(model.coef_[0] / np.linalg.norm(model.coef_[0]), model.predict((x - centre) / unit))


def encoded(sae: InferenceSAE, x: Float[np.ndarray, "n d"]) -> "csr_array":
    """Latents of rows, [n, d_sae]."""
    from scipy.sparse import csr_array, vstack

    parts = torch.from_numpy(x).split(max(1, ENTRIES // sae.d_sae))
    with torch.no_grad():
        return csr_array(vstack([csr_array(sae.encode(part.to(sae.b_enc.device)).dense().cpu().numpy()) for part in parts]))


def scores(words: Words, latents: "csr_array", W_dec: Float[np.ndarray, "d_sae d"]) -> dict[str, float]:
    """`words.x` without b_dec. {} where the probes know too few letters."""
    found = []
    length = np.linalg.norm(W_dec, axis=1).clip(min=1e-30)
    for letter, probe in words.probes.items():
        is_letter, is_train = words.letters == letter, words.is_train
        f1 = _f1(probe.says[~is_train], is_letter[~is_train])
        if f1 < WORST_F1:
            continue
        right = np.flatnonzero(is_letter & probe.says & ~is_train)
        main = main_latents(latents[is_train], is_letter[is_train])
        along = W_dec @ probe.direction
        is_silent = latents[right][:, main].sum(axis=1) == 0
        is_carried = _carried(latents[right], along, along / length > COSINE, words.x[right] @ probe.direction)
        found.append(((is_silent & is_carried).mean(), is_silent.mean(), len(main), f1))
    if len(found) < FEWEST_LETTERS:
        log.info("no absorption: probes know %d letters of words at this hook point, and %d must be known", len(found), FEWEST_LETTERS)
        return {}
    names = ("absorption", "absorption_silent", "absorption_main_latents", "absorption_probe_f1")
    return dict(zip(names, np.mean(found, axis=0).tolist(), strict=True)) | {"absorption_letters": float(len(found))}


def main_latents(latents: "csr_array", is_letter: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " k"]:
    """Numbers of the latents that stand for a letter, from words to learn from."""
    difference = latents[is_letter].mean(axis=0) - latents[~is_letter].mean(axis=0)
    order = np.argsort(-difference, kind="stable")[:MOST_MAIN]
    features = latents[:, order].toarray().astype(np.float64)
    features /= features.std(axis=0).clip(min=1e-30)
    reached = 0.0
    for k in range(1, len(order) + 1):
        f1 = _f1(_regression().fit(features[:, :k], is_letter).predict(features[:, :k]), is_letter)
        if k > 1 and f1 <= reached + JUMP:
            return order[: k - 1]
        reached = f1
    return order


def _carried(
    latents: "csr_array", along: Float[np.ndarray, " d_sae"], is_aligned: Bool[np.ndarray, " d_sae"], total: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether the latent that adds most along the direction is aligned with it, and adds enough of the total."""
    carried = np.zeros(len(total), dtype=bool)
    for row, (start, stop) in enumerate(zip(latents.indptr, latents.indptr[1:], strict=False)):
        if start < stop and total[row] > 0:
            active = latents.indices[start:stop]
            added = latents.data[start:stop] * along[active]
            best = added.argmax()
            carried[row] = is_aligned[active[best]] and added[best] > SHARE * total[row]
    return carried


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=2000, class_weight="balanced")


def _f1(says: Bool[np.ndarray, " n"], is_true: Bool[np.ndarray, " n"]) -> float:
    return float(2 * (says & is_true).sum() / max(1, says.sum() + is_true.sum()))
