"""What the null models share."""

from sae_lightning.errors import InputError
from sae_lightning.models.dictionary import Dictionary


def untrained(dictionary: Dictionary) -> Dictionary:
    """The same dictionary without a parameter to train. Errors: InputError where it is not an autoencoder's."""
    if not dictionary.subtract or dictionary.shape.x != dictionary.shape.y:
        raise InputError("null models reconstruct the rows that they see: choose dictionary=autoencoder")
    return dictionary.requires_grad_(False)
