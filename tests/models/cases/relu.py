from sae_lightning.models.relu import ReLU
from tests.models.build import small

CASES = {
    "relu": lambda sparse: small(lambda dictionary: ReLU(dictionary, 0.1), sparse),
    "relu, unit norm": lambda sparse: small(lambda dictionary: ReLU(dictionary, 0.1, unit_norm=True), sparse),
}
