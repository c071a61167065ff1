"""Whether the sweeper that a trial belongs to has died, as far as that can be seen."""

import multiprocessing

import pytest

from sae_lightning.sweeps.owner import has_died, this_process

HERE = this_process({})


def test_a_process_of_this_machine_is_seen():
    child = multiprocessing.get_context("fork").Process(target=print)
    child.start()
    theirs = HERE._replace(pid=child.pid)
    child.join()
    assert HERE.place and HERE.since
    assert has_died(theirs.text(), HERE) is True
    assert has_died(HERE.text(), HERE) is False
    assert has_died(HERE._replace(since="1").text(), HERE) is True  # another process has its number now


@pytest.mark.parametrize("changed", [{"place": "another"}, {"host": "another"}, {"place": ""}])
def test_the_same_number_in_another_container_or_machine_says_nothing(changed):
    assert has_died(HERE._replace(**changed).text(), HERE) is None
    assert has_died(HERE._replace(**changed, pid=10**9).text(), HERE) is None


def test_a_task_that_slurm_has_begun_again_follows_itself():
    environment = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "one"}
    first, second = this_process(environment), this_process(environment | {"SLURM_RESTART_COUNT": "1"})
    elsewhere = first._replace(host="node1", place="node1")
    assert has_died(elsewhere.text(), second) is True
    assert has_died(elsewhere._replace(job="two/7").text(), second) is None
    assert has_died(elsewhere.text(), first) is None  # two sweepers in one job
    assert has_died(second._replace(place="node2").text(), first) is None
    assert has_died(elsewhere._replace(job="").text(), HERE._replace(attempt=1)) is None


def test_what_is_no_mark_of_ours_says_nothing():
    assert has_died("host:1:2", HERE) is None
