import torch

from sae_lightning.models.p_anneal import PAnneal
from tests.models.build import small


def p_anneal(sparse: bool | None = None, p: float = 1.0) -> PAnneal:
    """One that changes p several times in the next 20 steps."""
    sae = small(lambda dictionary: PAnneal(dictionary, 0.125, anneal_start=0.1), sparse)
    assert isinstance(sae, PAnneal)
    sae.begin_(20)
    with torch.no_grad():
        sae.p.fill_(p)
    return sae


CASES = {"p_anneal": p_anneal, "p_anneal, p 0.5": lambda sparse: p_anneal(sparse, 0.5)}
