import torch

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.jumprelu import JumpReLU
from tests.models.build import F, small


def jumprelu(sparse: bool | None = None, penalty: str = "target", target: float | None = 3.0, **settings) -> JumpReLU:
    """One with thresholds among the pre-activations and a kernel that holds many of them, in the midst of its warm-up."""
    target = target if penalty == "target" else None
    sae = small(lambda dictionary: JumpReLU(dictionary, penalty, target, 0.25, **settings), sparse)  # type: ignore[arg-type]
    assert isinstance(sae, JumpReLU)
    with torch.no_grad():
        sae.threshold.copy_(0.4 * torch.rand(F) + 0.05)
        sae.width.fill_(0.5)
        sae.warmup_steps.fill_(40)
        sae.steps_done.fill_(10)
    return sae


CASES = {
    "jumprelu": lambda sparse: jumprelu(sparse),
    "jumprelu, l0, gradient to input": lambda sparse: jumprelu(sparse, "l0", gradient_to_input=True),
    "jumprelu, target, gradient to input": lambda sparse: jumprelu(sparse, gradient_to_input=True),
    "jumprelu, tanh": lambda sparse: jumprelu(sparse, "tanh"),
    "jumprelu, auxk, thresholds of the dead": lambda sparse: jumprelu(sparse, revival=AuxK(2, 0.5), threshold_revival=0.2),
}
