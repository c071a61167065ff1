"""Two ranks with half of the batch each are one process with all of it: every architecture, as every kind of dictionary.

Real gloo processes, one group.
"""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from tests.models.build import KINDS, cases, gradients, pair

MODELS = cases()
ALL = {(kind, name): make for kind in KINDS for name, make in cases(kind).items()}
STEPS = {"autoencoder": 20}
OF_OTHERS = 2


def train(kind: str, sae, x: torch.Tensor, y: torch.Tensor, rank: int, ranks: int) -> list[dict[str, torch.Tensor]]:
    """Gradients of the first step, then everything after some steps of plain gradient descent as SAEModule makes them."""
    from sae_lightning.ranks import sum_over_ranks_

    own, first = x[rank::ranks], {}
    own_y = own if y is x else y[rank::ranks]
    for _ in range(STEPS.get(kind, OF_OTHERS)):
        found = gradients(sae, own, own_y)
        for gradient in found.values():
            if ranks > 1:
                dist.all_reduce(gradient)
            gradient /= ranks
        first = first or {name: gradient.clone() for name, gradient in found.items()}
        step = sae.step(own, own_y)
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
    found = {case: train(case[0], make(None), *pair(case[0]), rank, 2) for case, make in ALL.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks():
    train("autoencoder", MODELS["topk"](None), *pair("autoencoder"), 0, 1)  # what torch imports at the first step is imported once
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(folder,), nprocs=2, start_method="fork")  # pyright: ignore[reportPrivateImportUsage]
        yield [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_are_one_process(name: str, kind: str, two_ranks) -> None:
    gradient, state = train(kind, ALL[kind, name](None), *pair(kind), 0, 1)
    for rank in (0, 1):
        assert_close(two_ranks[rank][kind, name][0], gradient, rtol=1e-6, atol=1e-9)
        assert_close(two_ranks[rank][kind, name][1], state, rtol=1e-5, atol=1e-8)


def test_the_comparison_can_fail(two_ranks) -> None:
    """A batch statistic taken per rank gives another gradient: what is compared above is sensitive to it."""
    x, y = (rows[::2] for rows in pair("autoencoder"))
    half = train("autoencoder", MODELS["lagrangian"](None), x, y, 0, 1)[0]
    both = two_ranks[0]["autoencoder", "lagrangian"][0]
    assert not torch.allclose(half["threshold"], both["threshold"], rtol=1e-3)
