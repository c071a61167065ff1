import torch

from sae_lightning.models.auxk import AuxK
from sae_lightning.models.matryoshka_lagrangian import MatryoshkaLagrangian
from tests.models.build import F, small


def matryoshka_lagrangian(sparse: bool | None = None, dual: float = 0.9, target: float = 3.0, **settings) -> MatryoshkaLagrangian:
    """One whose dual acts, with thresholds among the pre-activations and a kernel that holds many of them."""
    sae = small(lambda dictionary: MatryoshkaLagrangian(dictionary, target, rho=0.3, groups=[0.25, 0.25, 0.5], **settings), sparse)
    assert isinstance(sae, MatryoshkaLagrangian)
    with torch.no_grad():
        sae.threshold.copy_(0.4 * torch.rand(F) + 0.05)
        sae.dual.fill_(dual)
        sae.width.fill_(0.5)
    return sae


CASES = {
    "matryoshka_lagrangian": lambda sparse: matryoshka_lagrangian(sparse),
    "matryoshka_lagrangian, auxk": lambda sparse: matryoshka_lagrangian(sparse, revival=AuxK(2, 0.5)),
    "matryoshka_lagrangian, inequality": lambda sparse: matryoshka_lagrangian(sparse, inequality=True),
}
