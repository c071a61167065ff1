"""jaxtyping's names, for what must run on torch and safetensors alone: where jaxtyping is not installed, any tensor will do."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ImportError:

        class Float:
            def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
                return array_and_shape[0]

        Bool = Int = Shaped = Float

__all__ = ["Bool", "Float", "Int", "Shaped"]
