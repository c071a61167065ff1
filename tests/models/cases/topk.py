from sae_lightning.models.auxk import AuxK
from sae_lightning.models.ghost_grads import GhostGrads
from sae_lightning.models.topk import TopK
from tests.models.build import small

CASES = {
    "topk": lambda sparse: small(lambda dictionary: TopK(dictionary, 3), sparse),
    "topk, auxk": lambda sparse: small(lambda dictionary: TopK(dictionary, 3, AuxK(2, 0.5)), sparse),
    "topk, ghost gradients": lambda sparse: small(lambda dictionary: TopK(dictionary, 3, GhostGrads(0.5)), sparse),
}
