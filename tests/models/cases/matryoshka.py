from sae_lightning.models.auxk import AuxK
from sae_lightning.models.matryoshka import Matryoshka
from tests.models.build import small

CASES = {
    "matryoshka": lambda sparse: small(lambda dictionary: Matryoshka(dictionary, 3.3), sparse),
    "matryoshka, auxk": lambda sparse: small(lambda dictionary: Matryoshka(dictionary, 3.3, [0.25, 0.25, 0.5], AuxK(2, 0.5)), sparse),
}
