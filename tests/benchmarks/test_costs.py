"""The formula of what a harvest and a training take, worked out by hand, and the tables of docs/scaling.md."""

import os
from pathlib import Path

import pytest

from benchmarks import harvest
from benchmarks.costs import DEVICE, PLANS, STORAGE, Harvest, Rates, Training, block, step, tables
from sae_lightning.data.harvest import Harvest as Made
from sae_lightning.transformers.glassllm import GlassLLM

RATES = Rates(products=1e6, memory=1e5, gathered=1e4, link=1e3, latency=0.5)


def test_one_process() -> None:
    # d 10, 100 latents, k 5, 8 rows: 2·8·10·100 operations; 2·4·8·100 bytes; 8·5 entries, 4·4·10 bytes each; 15·4 bytes of 2·100·10 weights
    assert step(Training(10, 100, 5, 8), RATES) == pytest.approx((0.016, 0.064, 0.64, 1.2, 0))


def test_processes_that_divide_rows() -> None:
    # two rows on each of four; 2·3/4 of 2·100·10 numbers are sent
    assert step(Training(10, 100, 5, 8, 4, "ddp"), RATES) == pytest.approx((0.004, 0.016, 0.16, 1.2, 4 * 1.5 * 2000 / 1e3 + 0.5))


def test_processes_that_divide_latents() -> None:
    # 25 latents on each of four; 2·3/4 of 8·10 numbers are sent, and 8·5 to each of three
    assert step(Training(10, 100, 5, 8, 4, "shard_latents"), RATES) == pytest.approx(
        (0.004, 0.016, 0.16, 0.3, 4 * (1.5 * 80 + 3 * 40) / 1e3 + 1)
    )


def test_a_token() -> None:
    assert Harvest(below=1000, layers=2, d=10, context=5).operations == 2 * 1000 + 4 * 5 * 10 * 2
    assert block(d=10, heads=4, kv_heads=2, head=3, mlp=20) == 10 * 12 + 2 * 10 * 6 + 12 * 10 + 3 * 10 * 20


def test_the_document_shows_what_the_formula_says() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert tables(PLANS, DEVICE, STORAGE, 8) in text


@pytest.mark.usefixtures("unchecked")
def test_what_a_harvest_takes_is_counted_from_its_linear_layers(tmp_path: Path) -> None:
    """Two of glassllm's blocks: 4 heads of 32, two of keys and values, a gated MLP of 341."""
    cache = os.environ["SAE_LIGHTNING_TEST_CACHE"]
    text, settings = harvest.RandomText(False), {"context_length": 32, "shard_rows": 256, "forward_batch_size": 4}
    work = Made(GlassLLM(cache), text, max_tokens=4000, stores=tmp_path, **settings)
    taken, tokens, parameters = harvest.measure(work, tmp_path / "store", turns=1)
    assert (tokens, parameters) == (3 * 256, 2 * block(128, 4, 2, 32, 341))
    assert len(list((tmp_path / "store").glob("shard-*"))) == 6
    assert 0 < taken["products"] < taken["harvest"]
