"""Shards that are written while the next passes are made."""

import threading

import pytest

from sae_lightning.data.writer import behind


def test_calls_are_made_elsewhere_one_at_a_time_and_in_order() -> None:
    done: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go_on.wait(60)
        done.append(0)

    with behind() as do:
        do(first)
        assert begun.wait(60)  # beside this thread, which goes on
        assert done == []
        go_on.set()
        for i in (1, 2):
            do(done.append, i)
            assert done[:i] == list(range(i))
    assert done == [0, 1, 2]


def fail() -> None:
    raise OSError("full")


@pytest.mark.parametrize("calls", [1, 2])
def test_what_goes_wrong_is_raised_at_the_next_call_or_at_the_end(calls: int) -> None:
    done: list[int] = []

    def use() -> None:
        with behind() as do:
            do(fail)
            for i in range(1, calls):
                do(done.append, i)

    with pytest.raises(OSError, match="full"):
        use()
    assert done == []


def test_what_goes_wrong_here_leaves_what_was_begun_whole() -> None:
    done: list[int] = []

    def use() -> None:
        with behind() as do:
            do(done.append, 0)
            raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        use()
    assert done == [0]
