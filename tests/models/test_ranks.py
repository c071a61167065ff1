"""Two ranks with half of the batch each are one process with all of it: every architecture, real gloo processes, one group."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from tests.models.build import cases, gradients, rows

MODELS = cases()
STEPS = 20


def train(sae, x: torch.Tensor, rank: int, ranks: int) -> list[dict[str, torch.Tensor]]:
    """Gradients of the first step, then everything after 20 steps of plain gradient descent as SAEModule makes them."""
    from sae_lightning.ranks import sum_over_ranks_

    own, first = x[rank::ranks], {}
    for _ in range(STEPS):
        found = gradients(sae, own)
        for gradient in found.values():
            if ranks > 1:
                dist.all_reduce(gradient)
            gradient /= ranks
        first = first or {name: gradient.clone() for name, gradient in found.items()}
        step = sae.step(own, own)
        sums = sum_over_ranks_({"rows": torch.tensor(len(own)), "fires": step.latents.fires(), **step.sums})
        with torch.no_grad():
            for name, parameter in sae.named_parameters():
                parameter -= 0.05 * found[name]
        sae.dictionary.after_step_(sums["fires"], sums["rows"])
        sae.after_step_(sums)
    return [first, {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    found = {name: train(make(None), rows(), rank, 2) for name, make in MODELS.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks():
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(folder,), nprocs=2, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
        yield [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_are_one_process(name: str, two_ranks) -> None:
    gradient, state = train(MODELS[name](None), rows(), 0, 1)
    for rank in (0, 1):
        assert_close(two_ranks[rank][name][0], gradient, rtol=1e-6, atol=1e-9)
        assert_close(two_ranks[rank][name][1], state, rtol=1e-5, atol=1e-8)


def test_the_comparison_can_fail(two_ranks) -> None:
    """A batch statistic taken per rank gives another gradient: what is compared above is sensitive to it."""
    one = train(MODELS["lagrangian"](None), rows()[::2], 0, 1)[0]
    assert not torch.allclose(one["threshold"], two_ranks[0]["lagrangian"][0]["threshold"], rtol=1e-3)
