"""The one call that makes objects out of a configuration."""

from functools import partial

import hydra.utils

instantiate = partial(hydra.utils.instantiate, _convert_="all")
"""Lists and dicts arrive as Python's own."""
