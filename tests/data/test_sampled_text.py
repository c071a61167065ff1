import itertools
import os

import pytest
import torch
import torch.nn.functional as F

from sae_lightning.data import sampled_text
from sae_lightning.data.sampled_text import SampledText
from sae_lightning.errors import InputError
from sae_lightning.transformers.glassllm import GlassLLM
from sae_lightning.transformers.huggingface import HuggingFace
from tests.transformers.tiny_gpt2 import save_tiny_gpt2


@pytest.fixture(scope="module")
def glassllm() -> GlassLLM:
    return GlassLLM(os.environ["SAE_LIGHTNING_TEST_CACHE"])


def test_its_own_text_is_in_its_domain(glassllm: GlassLLM):
    """Measured: cross-entropy 3.35, entropy 3.34; a unigram model of the same text 5.9."""
    text = SampledText(batch_size=128)
    ids = torch.tensor(list(itertools.islice(text.sequences(glassllm, 128, 0, seed=0), 128)))
    assert ids.shape == (128, 128)
    with torch.inference_mode():
        logits = glassllm.load()(input_ids=ids).logits[:, :-1].log_softmax(-1)
    clean = F.nll_loss(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    entropy = -(logits.exp() * logits).sum(-1).mean().item()
    frequencies = torch.bincount(ids.flatten(), minlength=1024) + 1.0
    unigram = -(frequencies / frequencies.sum()).log()[ids].mean().item()
    assert 3.2 < clean < 3.5
    assert abs(clean - entropy) < 0.05  # it is drawn from that very distribution
    assert clean < unigram - 2


def test_a_sequence_depends_on_seed_and_number_only(glassllm: GlassLLM):
    text = SampledText(batch_size=4)
    whole = list(itertools.islice(text.sequences(glassllm, 16, 0, seed=1), 12))
    for start in (1, 4, 7):
        assert list(itertools.islice(text.sequences(glassllm, 16, start, seed=1), 5)) == whole[start : start + 5]
    assert len(set(map(tuple, whole))) == 12
    assert list(itertools.islice(text.sequences(glassllm, 16, 0, seed=2), 12)) != whole


def test_the_cache_changes_nothing(glassllm: GlassLLM):
    """Against one forward pass over everything before, for each token."""
    found = sampled_text.sample(glassllm.load(), [5], 12, 3, 0.7, seed=4, number=0)
    draws = sampled_text.generator(4, "sampled text", 0)
    ids = torch.full((3, 1), 5)
    for _ in range(11):
        logits = glassllm.load()(input_ids=ids, use_cache=False).logits[:, -1]
        drawn = sampled_text.draw(logits / 0.7, torch.rand(3, generator=draws, dtype=torch.float64))
        ids = torch.cat([ids, drawn[:, None]], dim=1)
    assert torch.equal(found, ids)


def test_a_token_is_drawn_with_its_chance():
    # chances 0, 1/4, 3/4: the sums are 0, 1/4, 1
    logits = torch.tensor([float("-inf"), 0.0, 1.0986123]).expand(5, 3)
    uniform = torch.tensor([0.0, 0.2, 0.26, 0.9, 0.9999999999999999], dtype=torch.float64)
    assert sampled_text.draw(logits, uniform).tolist() == [1, 1, 2, 2, 2]


def test_bos_starts_a_sequence_where_it_is_wanted(tmp_path):
    save_tiny_gpt2(tmp_path / "gpt2")
    transformer = HuggingFace(str(tmp_path / "gpt2"))
    with_bos = list(itertools.islice(SampledText(batch_size=8, prepend_bos=True).sequences(transformer, 10, 0, 0), 8))
    without = list(itertools.islice(SampledText(batch_size=8).sequences(transformer, 9, 0, 0), 8))
    assert [sequence[0] for sequence in with_bos] == [0] * 8
    assert [sequence[1:] for sequence in with_bos] == without  # started from BOS, which is left out


def test_bad_settings(glassllm: GlassLLM):
    with pytest.raises(InputError, match="temperature"):
        SampledText(temperature=0)
    with pytest.raises(InputError, match="batch_size"):
        SampledText(batch_size=0)
    with pytest.raises(InputError, match="128 positions of 'glassllm'"):
        next(SampledText().sequences(glassllm, 129, 0, 0))
    with pytest.raises(InputError, match="has no BOS"):
        next(SampledText(prepend_bos=True).sequences(glassllm, 16, 0, 0))
