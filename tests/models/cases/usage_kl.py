import torch

from sae_lightning.models.usage_kl import UsageKL
from tests.models.build import F, small


def usage_kl(sparse: bool | None = None, **settings) -> UsageKL:
    """One with usages of every size and a kernel that holds many pre-activations below 0, in the midst of its warm-up."""
    sae = small(lambda dictionary: UsageKL(dictionary, 0.125, momentum=0.9, warmup_steps=40, period_steps=100, **settings), sparse)
    assert isinstance(sae, UsageKL)
    with torch.no_grad():
        sae.running_usage.copy_(torch.rand(F) ** 3)
        sae.width.fill_(1.0)
        sae.steps_done.fill_(30)
    return sae


CASES = {"usage_kl": lambda sparse: usage_kl(sparse), "usage_kl, cap": lambda sparse: usage_kl(sparse, cap=0.4)}
