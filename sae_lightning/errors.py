"""The one error that a user sees as a single line."""


class InputError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and what to do.

    `train.py` and `evaluate.py` print it without a traceback and exit with 2.
    """
