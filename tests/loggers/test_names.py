"""What is logged under the names of others."""

import pytest

from sae_lightning.errors import InputError
from sae_lightning.loggers.names import SETS, check_names
from tests.callbacks.curves import curves
from tests.runs import SMALL, fit

NOT_HERE = {"details/buffer_fill_pct", "details/tokens", "details/images", "hardware/gpu_memory_gb", "hardware/gpu_memory_pct"}
"""Of live rows, of a transformer, of images, of a GPU."""
RUNS = {
    "lagrangian": "model.target_l0=4",
    "relu": "model.sparsity=0.1 model/revival=ghost_grads",
    "usage_kl": "model.usage=0.05",
}


@pytest.fixture(scope="module", params=RUNS)
def logged(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    length = "trainer.max_steps=40 trainer.log_every_n_steps=10 trainer.val_check_interval=20 callbacks.progress_bar=null"
    fit(f"model={request.param} {RUNS[request.param]} {SMALL} {length} logger.names=[{','.join(SETS)}]", folder)
    return curves(folder / "metrics.csv")


found: set[str] = set()


def test_each_is_ours_at_the_same_steps(logged) -> None:
    for name, ours in {pair for names in SETS.values() for pair in names.items()}:
        values = {step: value for (step, metric), value in logged.items() if metric == ours}
        assert {step: value for (step, metric), value in logged.items() if metric == name} == values, name
        if values:
            found.add(ours)


def test_there_is_one_for_each_name() -> None:
    """After the runs above: none of ours is a slip of the pen."""
    assert {ours for names in SETS.values() for ours in names.values()} - found == NOT_HERE


def test_a_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"logger\.names=guides: .*did you mean guide"):
        check_names(["prisma", "guides"])
