"""What other libraries say on every run, and nobody needs to read."""

import logging
import warnings

NOISE = (
    "Your `IterableDataset` has `__len__` defined",  # there are no workers
    "The '(train|val)_dataloader' does not have many workers",  # rows are made ahead by a thread
    "You're resuming from a checkpoint that ended before the epoch ended",  # the cursor is in the data's state
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # lightning 2.6 on torch 2.13
    "The `srun` command is available on your system but is not used",
)


def quiet() -> None:
    """Silences advertisement, and warnings about what is done on purpose; everything else is still said."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for name in ("httpx", "httpx2"):  # huggingface_hub's: a line for each request
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
