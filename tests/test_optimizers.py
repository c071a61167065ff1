"""β₁ is the architecture's where the user leaves it open, and the user's where not."""

from functools import partial

import pytest
import torch

from sae_lightning.optimizers import with_beta1
from tests.architectures import fitting
from tests.runs import SMALL, compose, fit

RUN = f"{SMALL} callbacks=none logger=none trainer.max_steps=2 trainer.val_check_interval=2"


@pytest.mark.parametrize(
    ("words", "betas"),
    [
        ("model=gated", (0.0, 0.999)),
        ("model=topk", (0.9, 0.999)),
        ("model=gated optimizer=adamw", (0.0, 0.999)),
        ("model=gated optimizer.betas=[0.8,0.99]", (0.8, 0.99)),
        ("model=topk optimizer.betas=[null,0.95]", (0.9, 0.95)),
    ],
)
def test_beta1(words: str, betas: tuple[float, float], tmp_path) -> None:
    model = words.split()[0].removeprefix("model=")
    run = fit(f"{words} {fitting(model)} {RUN}", tmp_path)
    for group in run.trainer.optimizers[0].param_groups:
        assert tuple(group["betas"]) == betas


def test_an_optimizer_without_betas_is_left_alone(tmp_path) -> None:
    run = fit(f"model=gated optimizer=sgd {RUN}", tmp_path)
    assert run.trainer.optimizers[0].param_groups[0]["momentum"] == 0.9
    make = partial(torch.optim.SGD, lr=0.1)
    assert with_beta1(make, 0.0) is make
    assert with_beta1(torch.optim.Adam, 0.0) is torch.optim.Adam


@pytest.mark.parametrize("model", ["gated", "jumprelu", "p_anneal"])
def test_architectures_with_jumps_or_moving_penalties_want_no_momentum(model: str, tmp_path) -> None:
    from sae_lightning.run.build import build

    assert build(compose(f"model={model} {fitting(model)} {RUN}", tmp_path)).module.sae.beta1 == 0.0
