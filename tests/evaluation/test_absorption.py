import itertools

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.evaluation.words import BOS, EMBEDDED, Words

LETTERS, OF_EACH = 6, 32
N = LETTERS * OF_EACH
D = LETTERS + 4
SPELT = ["".join("abcdefghij"[int(digit)] for digit in f"{i:02}") for i in range(OF_EACH)]


def rows_of_words():
    """Word i is of letter i // 32: 2 along that letter's direction, and noise across."""
    x = np.zeros((N, D), dtype=np.float32)
    x[np.arange(N), np.arange(N) // OF_EACH] = 2
    x[:, LETTERS:] = 0.1 * np.random.default_rng(0).standard_normal((N, 4))
    return x


def dictionary(absorbed, swallows=1.0, silent=True):
    """Latents [n, 6 + absorbed] and decoder rows: one for each letter, and one for each absorbed word, which adds `swallows` · 2 of its letter.

    With `silent` the letter's latent is not active where a word has a latent of its own.
    """
    latents, W_dec = np.zeros((N, LETTERS + len(absorbed))), np.zeros((LETTERS + len(absorbed), D))
    latents[np.arange(N), np.arange(N) // OF_EACH] = 2
    W_dec[np.arange(LETTERS), np.arange(LETTERS)] = 1
    for latent, word in enumerate(absorbed, LETTERS):
        latents[word, latent] = 4
        W_dec[latent, word // OF_EACH], W_dec[latent, LETTERS] = swallows / 2, 1
        if silent:
            latents[word, word // OF_EACH] = 0
    return latents, W_dec


def scored(latents, W_dec, x=None):
    from scipy.sparse import csr_array

    from sae_lightning.evaluation import absorption

    x, letters = rows_of_words() if x is None else x, np.arange(N) // OF_EACH
    is_train = np.arange(N) % 2 == 0
    probes = {letter: absorption.fitted(x, letters == letter, is_train) for letter in range(LETTERS)}
    return absorption.scores(absorption.Words(letters, is_train, x, probes), csr_array(latents), W_dec)


# Of letters 0 and 1: four of the 16 odd words, that are counted, and two even ones. Of letter 2: one.
ABSORBED = [1, 3, 5, 7, 8, 10, *(OF_EACH + word for word in (1, 3, 5, 7, 8, 10)), 2 * OF_EACH + 9]


def test_planted_absorption_is_found_word_by_word():
    values = scored(*dictionary(ABSORBED))
    assert_close(values["absorption"], (4 / 16 + 4 / 16 + 1 / 16) / 6)
    assert_close(values["absorption_silent"], values["absorption"])
    # Of letters 0 and 1, 14 of 16 words to learn from have the letter's latent; with those of the two others F1 rises from 28/30 to 30/31
    # and to 1, each time by more than 0.03: three main latents, which the words that are counted do not have. One of the other letters.
    assert_close(values["absorption_main_latents"], (3 + 3 + 4 * 1) / 6)
    assert values["absorption_probe_f1"] == 1
    assert values["absorption_letters"] == 6


@pytest.mark.parametrize(
    ("how", "silent"),
    [
        ({"silent": False}, 0.0),  # the letter's latent is active beside the word's
        ({"swallows": 0.0}, 9 / 96),  # the word's latent has nothing of the letter: missed, not absorbed
        ({"swallows": 0.35}, 9 / 96),  # 4 · 0.35/2 = 0.7 of 2 is 35 %, less than 40 %
        ({"swallows": -1.0}, 9 / 96),
    ],
)
def test_what_is_no_absorption_is_not_counted(how, silent):
    values = scored(*dictionary(ABSORBED, **how))
    assert values["absorption"] == 0
    assert_close(values["absorption_silent"], silent)
    assert_close(scored(*dictionary(ABSORBED, swallows=0.45))["absorption"], 9 / 96)


def test_the_cosine_counts_not_only_what_is_added():
    """A latent that adds all of the letter by a cosine of 0.01 is about something else."""
    latents, W_dec = dictionary(ABSORBED)
    W_dec[LETTERS:, LETTERS + 1] = 50
    assert scored(latents, W_dec)["absorption"] == 0


def test_a_letter_that_is_split_has_several_main_latents():
    """Each half of the words has a latent, which together are silent for none."""
    latents, W_dec = dictionary([])
    split = np.zeros((N, 2 * LETTERS))
    for word in range(N):
        split[word, 2 * (word // OF_EACH) + word // 2 % 2] = 2
    values = scored(split, np.repeat(W_dec, 2, axis=0))
    assert values["absorption_main_latents"] == 2
    assert values["absorption_silent"] == 0
    assert scored(latents, W_dec)["absorption_main_latents"] == 1


def test_letters_that_activations_do_not_tell_are_left_out(monkeypatch):
    """Of letters 0 to 3 all words stand in one place: a probe takes the words of four letters for one's, F1 is 2 · 16/(64 + 16) = 0.4."""
    from sae_lightning.evaluation import absorption

    x = rows_of_words()
    x[: 4 * OF_EACH] = x[0]
    assert scored(*dictionary(ABSORBED), x) == {}
    monkeypatch.setattr(absorption, "FEWEST_LETTERS", 2)
    assert scored(*dictionary(ABSORBED), x)["absorption_letters"] == 2
    x[: 4 * OF_EACH] = rows_of_words()[: 4 * OF_EACH]
    assert scored(*dictionary(ABSORBED), x)["absorption_letters"] == 6


def test_words_are_tokens_of_small_letters_with_their_space():
    from sae_lightning.evaluation.absorption import single_tokens

    words = [f"{letter}{spelt}" for letter, spelt in itertools.product("abc", SPELT)]
    vocabulary = {"▁" + word: i for i, word in enumerate(reversed(words))} | {
        "Ġ" + word + "x": 1000 + i for i, word in enumerate(words[:40])
    }
    vocabulary |= {"▁D" + spelt: 2000 + i for i, spelt in enumerate(SPELT)} | {"e" + spelt: 3000 + i for i, spelt in enumerate(SPELT)}
    vocabulary |= {"▁f" + spelt: 4000 + i for i, spelt in enumerate(SPELT[:29])} | {"▁g": 5000}
    found = single_tokens(vocabulary, {0, 95}, 40)
    assert list(found) == [0, 1, 2]  # 29 words of f are one too few
    assert found[0] == [*range(64, 95), *range(1000, 1009)]  # 95 is special; the smallest ids come first
    assert found[1] == [*range(32, 64), *range(1032, 1040)]
    assert found[2] == list(range(1, 32))


def odd_ones(letter):
    """Every third word of those that are counted."""
    from sae_lightning.evaluation.absorption import half

    return ~half(OF_EACH, letter) & (np.arange(OF_EACH) % 3 == 0)


class Spelling(Words):
    """Embeddings say the first letter by a dimension each, 4 of it; of the odd ones 2, and 5 in dimension 15."""

    def load(self, device="cpu"):
        model = super().load(device)
        embeddings = 0.05 * torch.randn(len(self.tokens), 16, generator=torch.Generator().manual_seed(0))
        for letter in range(LETTERS):
            is_odd = torch.from_numpy(odd_ones(letter)).float()
            own = embeddings[4 + OF_EACH * letter :][:OF_EACH]
            own[:, letter] += 4 - 2 * is_odd
            own[:, 15] += 5 * is_odd
        model.get_parameter("model.embed_tokens.weight").data.copy_(embeddings)
        return model


@pytest.fixture(scope="module")
def spelling():
    return Spelling(["The", "word", *(f"{letter}{spelt}" for letter, spelt in itertools.product("abcdef", SPELT))])


def spelling_sae(sae, threshold):
    """A latent for each letter, active above `threshold`; and one for each letter's odd ones, which adds 2 of the letter."""
    encoder, decoder = torch.zeros(12, 16), torch.zeros(12, 16)
    for letter in range(6):
        encoder[letter, letter] = decoder[letter, letter] = 1
        encoder[6 + letter, letter] = encoder[6 + letter, 15] = 1
        decoder[6 + letter, letter], decoder[6 + letter, 15] = 2 / 7, 5 / 7  # f is 2 + 5
    made = sae(encoder, decoder)
    made.threshold[:6], made.threshold[6:] = threshold, 6.0
    return made


def test_in_a_transformer(rows, sae, spelling):
    from sae_lightning.evaluation.absorption import Absorption

    ids = torch.tensor([[BOS, 2, 3]])
    data = rows(torch.ones(3, 16), transformer=spelling, hook=EMBEDDED, tokens=ids, special=ids == BOS)
    evaluation = Absorption()
    values = evaluation(spelling_sae(sae, threshold=3.0), data)
    assert values["absorption_letters"] == LETTERS
    assert values["absorption_probe_f1"] == 1
    expected = float(np.mean([odd_ones(letter).sum() / (OF_EACH / 2) for letter in range(LETTERS)]))
    assert_close(values["absorption"], expected)
    assert expected > 0.2
    control = evaluation(spelling_sae(sae, threshold=1.0), data)
    assert control["absorption"] == control["absorption_silent"] == 0
    assert evaluation(spelling_sae(sae, threshold=3.0), data) == values


def test_nothing_where_there_are_too_few_words_or_no_transformer(rows, sae, spelling):
    from sae_lightning.evaluation.absorption import Absorption

    few = Words([f"{letter}{spelt}" for letter, spelt in itertools.product("abcd", SPELT)])
    ids = torch.tensor([[BOS, 2, 3]])
    own = sae(torch.eye(16))
    assert Absorption()(own, rows(torch.ones(3, 16), transformer=few, hook=EMBEDDED, tokens=ids, special=ids == BOS)) == {}
    assert Absorption()(own, rows(torch.ones(3, 16))) == {}
    transcoder = rows(torch.ones(3, 16), transformer=spelling, hook=EMBEDDED, tokens=ids, special=ids == BOS)
    transcoder.views = "pair"
    assert Absorption()(own, transcoder) == {}


def test_bad_input_is_one_line():
    from sae_lightning.errors import InputError
    from sae_lightning.evaluation.absorption import Absorption

    for settings in ({"words": 29}, {"batch_tokens": 0}):
        with pytest.raises(InputError, match=r"evaluate.absorption: words=\d+ must be 30 or more, and batch_tokens=\d+ must be positive"):
            Absorption(**settings)
