import math

import lightning as L
import pytest

from sae_lightning.callbacks.miracle_distance import MiracleDistance
from sae_lightning.errors import InputError
from sae_lightning.module import SAEModule

ON_TARGET = {"mse": 0.015, "l0": 15.0, "dead_pct": 5.0}
LOG2 = math.log(2) ** 2
LOG10 = math.log(10) ** 2


@pytest.mark.parametrize(
    ("values", "one_sided", "two_sided"),
    [
        ({}, 0.0, 0.0),
        ({"mse": 0.03}, LOG2, LOG2),
        ({"mse": 0.0075}, 0.0, LOG2),  # half of the wanted error is no distance
        ({"l0": 7.5}, LOG2, LOG2),  # too sparse is one
        ({"l0": 30.0}, LOG2, LOG2),
        ({"dead_pct": 0.0}, 0.0, LOG10),  # log 0 → log 0.1; two-sided, 5 % dead would beat 0 %
        ({"mse": 0.03, "l0": 30.0, "dead_pct": 10.0}, 3 * LOG2, 3 * LOG2),
    ],
)
def test_worked_out_by_hand(values, one_sided, two_sided):
    assert MiracleDistance().distance(ON_TARGET | values) == pytest.approx(math.sqrt(one_sided))
    assert MiracleDistance(two_sided=True).distance(ON_TARGET | values) == pytest.approx(math.sqrt(two_sided))


def test_weights_targets_and_the_other_error():
    distance = MiracleDistance(target_mse=0.1, target_sparsity=32, mse_weight=4.0, sparsity_weight=0.0, mse="normalised_mse")
    assert distance.distance({"normalised_mse": 0.2, "l0": 1.0, "dead_pct": 5.0}) == pytest.approx(2 * math.log(2))  # sqrt(4 · log²2)
    assert math.isnan(MiracleDistance().distance(ON_TARGET | {"mse": math.nan}))


@pytest.mark.parametrize("settings", [{"target_mse": 0.0}, {"target_sparsity": -1.0}, {"dead_pct_weight": -1.0}])
def test_bad_numbers_are_one_line(settings):
    with pytest.raises(InputError, match=r"callbacks\.miracle_distance: targets must be positive"):
        MiracleDistance(**settings)


@pytest.mark.parametrize("first", [True, False])
def test_is_the_distance_of_what_this_validation_logs_whatever_the_order_of_callbacks(small_run, first):
    seen = []

    class Watch(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append({name.removeprefix("val/"): float(value) for name, value in trainer.callback_metrics.items()})

    miracle = MiracleDistance(target_sparsity=3.0)
    small_run([miracle, Watch()] if first else [Watch(), miracle], steps=20, val_check_interval=5, enable_checkpointing=False)
    assert len({values["mse"] for values in seen}) == 4  # each validation has numbers of its own
    for values in seen:
        assert values["miracle_distance"] == pytest.approx(miracle.distance(values), rel=1e-5)


def test_missing_metrics_are_one_line(small_run):
    with pytest.raises(InputError, match="needs the metrics normalised"):
        small_run([_Without("normalised_mse"), MiracleDistance(mse="normalised_mse")], enable_checkpointing=False)


class _Without(L.Callback):
    """A run whose metrics lack one name."""

    def __init__(self, name: str):
        self.name = name

    def on_fit_start(self, trainer, pl_module: SAEModule):
        compute = pl_module.metrics.compute
        pl_module.metrics.compute = lambda: {name: value for name, value in compute().items() if name != self.name}
