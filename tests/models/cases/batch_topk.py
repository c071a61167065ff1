from sae_lightning.models.auxk import AuxK
from sae_lightning.models.batch_topk import BatchTopK
from tests.models.build import small

CASES = {
    "batch_topk": lambda sparse: small(lambda dictionary: BatchTopK(dictionary, 3.3), sparse),
    "batch_topk, auxk": lambda sparse: small(lambda dictionary: BatchTopK(dictionary, 3.3, AuxK(2, 0.5)), sparse),
}
