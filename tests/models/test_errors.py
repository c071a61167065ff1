from functools import partial

import pytest

from sae_lightning.data.batch import Shape
from sae_lightning.errors import InputError
from sae_lightning.models.auxk import AuxK
from sae_lightning.models.dictionary import Dictionary
from sae_lightning.models.relu import ReLU
from sae_lightning.models.topk import TopK

make = partial(Dictionary, Shape((4,), (4,)), d_sae=8)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TopK(make, 9), "model.k is 9, and the dictionary has 8 latents"),
        (lambda: TopK(make, 0), "model.k is 0"),
        (lambda: ReLU(make, -0.1), "model.sparsity is -0.1"),
        (lambda: ReLU(make, 0.1, warmup=2.0), "model.warmup is 2.0"),
        (lambda: AuxK(0), "model.revival.k is 0"),
        (lambda: AuxK(coefficient=-1.0), "model.revival.coefficient is -1"),
        (lambda: Dictionary(Shape((4,), (4,)), d_sae=8, dead_after=0), "dictionary.dead_after is 0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(build, says: str) -> None:
    with pytest.raises(InputError) as error:
        build()
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
