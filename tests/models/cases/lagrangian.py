import torch

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.lagrangian import Lagrangian
from tests.models.build import F, small


def lagrangian(sparse: bool | None = None, dual: float = 0.9, target: float = 3.0, **settings) -> Lagrangian:
    """One whose dual acts, with thresholds among the pre-activations and a kernel that holds many of them."""
    sae = small(lambda dictionary: Lagrangian(dictionary, target, rho=0.3, **settings), sparse)
    assert isinstance(sae, Lagrangian)
    with torch.no_grad():
        sae.threshold.copy_(0.4 * torch.rand(F) + 0.05)
        sae.dual.fill_(dual)
        sae.width.fill_(0.5)
    return sae


CASES = {
    "lagrangian": lambda sparse: lagrangian(sparse),
    "lagrangian, auxk": lambda sparse: lagrangian(sparse, revival=AuxK(2, 0.5)),
    "lagrangian, thresholds of the dead": lambda sparse: lagrangian(sparse, threshold_revival=0.2),
    "lagrangian, inequality": lambda sparse: lagrangian(sparse, inequality=True),
}
