"""Every metric against arithmetic done by hand, over any split into batches, over two processes."""

import functools
import itertools
import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics import Metric, MetricCollection

CONF = Path(__file__).parents[2] / "conf"
NAMES = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml") if path.stem != "default")


def metric(name: str) -> Metric:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose(overrides=[f"+metrics={name}"]).metrics[name])


@functools.cache
def _fresh() -> MetricCollection:
    return MetricCollection({name: metric(name) for name in NAMES})


def all_metrics() -> MetricCollection:
    return _fresh().clone()


def seen(y, y_hat, f, x=None, sparse=False):
    """A batch and a step, from lists or tensors."""
    from sae_lightning.data.batch import Batch
    from sae_lightning.kernels.reference import Entries
    from sae_lightning.latents import Dense, Sparse
    from sae_lightning.models.base import Step

    y, y_hat, f = (torch.as_tensor(value, dtype=torch.float32) for value in (y, y_hat, f))
    latents = Dense(f)
    if sparse:
        stored = f != 0
        rows, columns = stored.nonzero(as_tuple=True)
        entries = Entries(rows, columns, stored.sum(1).cumsum(0) - stored.sum(1), f.shape[1])
        latents = Sparse(f[rows, columns], entries)
    return Batch(y if x is None else x, y), Step(latents, y_hat, {})


# Rows (1,0), (3,4); reconstructions (1,1), (3,2); so e = (0,−1), (0,2): ‖e‖² = 1, 4; Σ‖e‖² = 5, Σ|e| = 3.
# ȳ = (2,2): ‖y−ȳ‖² = 5, 5 → 10.  Σ‖y‖² = 26.  Latents (2,0,0), (1,0,5).
Y, Y_HAT, LATENTS = [[1, 0], [3, 4]], [[1, 1], [3, 2]], [[2, 0, 0], [1, 0, 5]]
GOLDEN = {
    "mse": 5 / 4,
    "mse_sum": 5 / 2,
    "normalised_mse": 5 / 26,
    "l1_error": 3 / 4,
    "fvu": 5 / 10,
    "explained_variance": 1 - 5 / 10,
    "explained_variance_legacy": ((1 - 1 / 5) + (1 - 4 / 5)) / 2,
    "explained_variance_std": 0.6 / math.sqrt(2),  # of 0.8 and 0.2: each 0.3 from 0.5, sqrt((0.09 + 0.09) / 1)
    "mse_over_norm": (1 + 4) / math.sqrt(5) / 2 / 2,  # two rows, d 2
    "cosine": (1 / math.sqrt(2) + 17 / (5 * math.sqrt(13))) / 2,  # (1,0)·(1,1) = 1; (3,4)·(3,2) = 17
    "relative_reconstruction_bias": (2 + 13) / (1 + 17),
    "l0": 3 / 2,
    "l1": 8 / 2,
    "dead": 1,
    "dead_pct": 100 / 3,
    "alive": 2,
    "rows": 2,
    "latents_min": 0,
    "latents_max": 5,
    "latents_mean": 8 / 6,
    "latents_std": math.sqrt(30 / 6 - (8 / 6) ** 2),  # Σf² = 4 + 1 + 25
    "latents_norm": math.sqrt(30 / 2),
    "mean_magnitude": 8 / 3,
    "below_1e-5": 1,  # densities 1, 0, ½
    "below_1e-6": 1,
    "above_1e-2": 2,
    "above_1e-1": 2,
    "above_1e-2_share_of_l0": 1,
    "above_1e-1_share_of_l0": 1,
    "mean_log10_feature_sparsity": (math.log10(1 + 1e-10) - 10 + math.log10(0.5 + 1e-10)) / 3,
}


@pytest.mark.parametrize("sparse", [False, True])
def test_golden_values(sparse: bool):
    metrics = all_metrics()
    metrics.update(*seen(Y, Y_HAT, LATENTS, sparse=sparse))
    values = metrics.compute()
    assert values.keys() == GOLDEN.keys()
    for name, value in GOLDEN.items():
        expected = torch.tensor(value, dtype=torch.float64)
        assert_close(values[name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_density_counts_and_shares():
    from sae_lightning.metrics.density import density_numbers

    values = density_numbers(torch.tensor([0.0, 5e-6, 0.005, 0.05, 0.5]))  # L0 = 0.555005
    logs = [math.log10(density + 1e-10) for density in (0, 5e-6, 0.005, 0.05, 0.5)]
    assert {name: round(float(value), 4) for name, value in values.items()} == {
        "below_1e-5": 2,
        "below_1e-6": 1,
        "above_1e-2": 2,
        "above_1e-2_share_of_l0": 0.991,
        "above_1e-1": 1,
        "above_1e-1_share_of_l0": 0.9009,
        "mean_log10_feature_sparsity": round(sum(logs) / 5, 4),
    }


def test_y_counts_and_not_x():
    """A transcoder's x has another width; errors are of y."""
    batch, step = seen(Y, Y_HAT, LATENTS, x=torch.ones(2, 7))
    metrics = all_metrics()
    metrics.update(batch, step)
    assert_close(float(metrics.compute()["mse"]), 5 / 4)


def random_rows(seed: int, n: int = 24, d: int = 5, d_sae: int = 9):
    g = torch.Generator().manual_seed(seed)
    y = 3 + torch.randn(n, d, generator=g)
    f = torch.randn(n, d_sae, generator=g).relu() * (torch.rand(n, d_sae, generator=g) < 0.3)
    return y, y + 0.3 * torch.randn(n, d, generator=g), f


@given(seed=st.integers(0, 100), cuts=st.lists(st.integers(1, 23), max_size=5), sparse=st.booleans())
def test_any_split_into_batches_gives_the_same(seed: int, cuts: list[int], sparse: bool):
    y, y_hat, f = random_rows(seed)
    whole, split = all_metrics(), all_metrics()
    whole.update(*seen(y, y_hat, f))
    edges = [0, *sorted(set(cuts)), len(y)]
    for start, stop in itertools.pairwise(edges):
        split.update(*seen(y[start:stop], y_hat[start:stop], f[start:stop], sparse=sparse))
    assert_close(split.compute(), whole.compute(), rtol=1e-9, atol=1e-12)


def test_a_reset_forgets_everything_and_a_clone_is_on_its_own():
    metrics = all_metrics()
    metrics.update(*seen(*random_rows(1)))
    other = metrics.clone()
    metrics.reset()
    metrics.update(*seen(Y, Y_HAT, LATENTS))  # another width, another dictionary
    assert_close(float(metrics.compute()["explained_variance"]), 0.5)
    assert float(other.compute()["rows"]) == 24


def test_variance_is_exact_far_from_the_origin():
    """Σ‖y‖² is 10⁸ times the variance: sums in float32 would lose it."""
    g = torch.Generator().manual_seed(0)
    y = 10_000 + torch.randn(4096, 8, generator=g)
    y_hat = y + torch.randn(4096, 8, generator=g)
    metrics = all_metrics()
    for part in range(0, 4096, 64):
        metrics.update(*seen(y[part : part + 64], y_hat[part : part + 64], torch.ones(64, 3)))
    exact = (y.double() - y_hat).square().sum() / (y.double() - y.double().mean(0)).square().sum()
    assert_close(metrics.compute()["fvu"], exact, rtol=1e-6, atol=0.0)


def test_rows_that_are_all_alike_have_no_explained_variance_and_break_nothing():
    metrics = all_metrics()
    metrics.update(*seen([[1.0, 2.0]] * 3, [[1.0, 2.5]] * 3, [[0.0, 0.0]] * 3))
    values = metrics.compute()
    assert not math.isfinite(values["explained_variance"])
    assert float(values["mean_magnitude"]) == 0.0


def test_rows_beyond_the_memory_of_variance_per_row_are_not_kept():
    from sae_lightning.metrics.variance_per_row import VariancePerRow

    y, y_hat, f = random_rows(3)
    short, exact = VariancePerRow(rows=10), VariancePerRow()
    for part in range(0, 24, 7):
        short.update(*seen(y[part : part + 7], y_hat[part : part + 7], f[part : part + 7]))
    exact.update(*seen(y[:10], y_hat[:10], f[:10]))
    assert sum(len(kept) for kept in short.kept) == 10
    assert_close(short.compute(), exact.compute())


def test_no_metric_is_taken_for_another():
    """torchmetrics lets metrics with the same states and equal values share them from the first batch on."""
    states = {name: frozenset(metric(name)._defaults) for name in NAMES}
    assert len(set(states.values())) == len(states)


def test_the_default_leaves_out_only_what_needs_a_window():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = set(compose(overrides=["+metrics=default"]).metrics)
    assert set(NAMES) - names == {"density"}


def _rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    y, y_hat, f = random_rows(5)
    metrics = all_metrics()
    mine = slice(0, 16) if rank == 0 else slice(16, 24)  # ranks need not have seen equally many rows
    metrics.update(*seen(y[mine], y_hat[mine], f[mine]))
    torch.save(metrics.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, port, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    whole = all_metrics()
    whole.update(*seen(*random_rows(5)))
    for rank in range(2):
        assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole.compute(), rtol=1e-9, atol=1e-12)
