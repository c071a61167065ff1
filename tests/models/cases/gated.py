import torch

from sae_lightning.models.gated import Gated
from tests.models.build import F, small


def gated(sparse: bool | None = None) -> Gated:
    """One whose gate and magnitude disagree about many entries."""
    sae = small(lambda dictionary: Gated(dictionary, 0.125), sparse)
    assert isinstance(sae, Gated)
    with torch.no_grad():
        sae.dictionary.b_enc.sub_(0.5)
        sae.r_mag.copy_(0.3 * torch.randn(F) - 0.5)
        sae.b_mag.copy_(0.6 * torch.randn(F))
    return sae


CASES = {"gated": gated}
