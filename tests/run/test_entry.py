"""The command line as a process: one line and exit code 2 for every mistake, and nothing left behind."""

import pytest

MISTAKES = {
    "an option": (["model=topkk"], "model has no option 'topkk'; did you mean model=topk?"),
    "a group": (["modle=topk"], "did you mean model=topk?"),
    "a key": (["model.kk=3"], "did you mean model.k=3?"),
    "a type": (["model.k=abc"], "model.k must be an integer, got 'abc'"),
    "a flag": (["--hlep"], "did you mean --help?"),
    "null for a group": (["logger=null"], "for none at all, logger=none"),
    "sharding": (["strategy=fsdp"], "use strategy=shard_latents"),
    "a target": (["model._target_=os.system"], "model._target_ is os.system"),
    "a choice of a sweep": (["-m", "model=topk,lagrangian", "model.k=1,2"], "model.k belongs to model=topk"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(house, mistake):
    words, expected = MISTAKES[mistake]
    ran = house.run(*words)
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert house.left() == []


def test_a_run_leaves_its_record_and_never_needed_torch(house):
    ran = house.run("model=lagrangian", "model.target_l0=16", "seed=3")
    assert ran.code == 0, ran.err
    assert ran.folder.parent.name == "lagrangian-L0_16-s3"
    assert ran.folder.parent.parent.name == "outputs"
    assert ran.out.splitlines()[0] == f"folder: {ran.folder}"
    assert "folder: " in (ran.folder / "training.log").read_text()
    assert ran.out.splitlines()[1].endswith(" False")  # torch was not imported before main
    assert {path.name for path in (ran.folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


def test_flags_may_stand_anywhere(house):
    ran = house.run("model=topk", "-m", "seed=1,2")
    assert ran.code == 0, ran.err
    sweep = ran.folder.parent
    assert sweep.parent.name == "multirun"
    assert sorted(path.name for path in sweep.iterdir()) == ["0-topk-k32-s1", "1-topk-k32-s2", "multirun.yaml"]


def test_help_lists_groups_and_five_examples(house):
    ran = house.run("--help")
    assert (ran.code, ran.err) == (0, "")
    assert "model: lagrangian, topk\n" in ran.out
    assert "data/transformer: tiny\n" in ran.out
    assert ran.out.count("  python train.py") == 5
    assert "hydra/" not in ran.out
    assert house.left() == []


def test_what_is_refused_late_is_one_line_and_takes_its_folder_along(house):
    ran = house.run("fate=refused")
    assert ran.code == 2
    assert "RAN" in ran.out
    assert ran.err == "error: the data is too short\n"
    assert house.left() == []


def test_a_folder_with_a_result_stays(house):
    ran = house.run("fate='refused late'")
    assert (ran.code, ran.err) == (2, "error: the disk is full\n")
    assert (ran.folder / "last.ckpt").exists()


def test_a_bug_keeps_its_traceback(house):
    ran = house.run("fate=broken")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "KeyError: 'a bug'" in ran.err


def test_a_refused_job_of_a_sweep_stops_no_other_one(house):
    ran = house.run("-m", "fate=refused,fine")
    assert ran.code == 2
    assert ran.out.count("RAN") == 2
    assert ran.err.splitlines()[-1] == "error: the data is too short"
    assert "Traceback" not in ran.err
    assert not ran.folder.exists()
    assert [path.name for path in ran.folder.parent.iterdir() if path.is_dir()] == ["1-topk-k32-s0"]


def test_a_sweep_of_refused_jobs_leaves_nothing(house):
    assert house.run("-m", "fate=refused").code == 2
    assert house.left() == []


def test_a_folder_that_was_there_stays(house):
    (house.root / "mine").mkdir(exist_ok=True)
    ran = house.run("fate=refused", f"hydra.run.dir={house.root}/mine")
    assert ran.code == 2
    assert (house.root / "mine").is_dir()


def test_ranks_that_compose_by_themselves_share_a_folder(house):
    job = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    first, second = (house.run(SLURM_PROCID=rank, **job) for rank in "01")
    other = house.run(SLURM_PROCID="0", **(job | {"SLURM_STEP_ID": "1"}))
    assert first.folder.name == second.folder.name != other.folder.name


def test_a_child_of_ddp_joins_the_folder_and_leaves_its_record_alone(house):
    """The words are those that Lightning adds to the command of its children."""
    parent = house.run("seed=5")
    record = {path.name: path.read_bytes() for path in (parent.folder / ".hydra").iterdir()}
    added = [f'hydra.run.dir="{parent.folder}"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    child = house.run("seed=5", *added, LOCAL_RANK="1")
    assert child.code == 0, child.err
    assert child.folder == parent.folder
    assert {path.name: path.read_bytes() for path in (parent.folder / ".hydra").iterdir()} == record


def test_a_typing_mistake_is_said_once_by_all_ranks(house):
    job = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    ran = house.run("model=topkk", SLURM_PROCID="1", **job)
    assert (ran.code, ran.err) == (2, "")


def test_the_configuration_folder_can_be_widened(house, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("{_target_: sae_lightning.models.topk.TopK, k: 5}")
    assert house.run("model=mine").code == 2
    ran = house.run("model=mine", "--config-dir", str(tmp_path))
    assert ran.code == 0, ran.err
    assert ran.folder.parent.name == "mine-k5-s0"


def test_two_runs_of_one_second_have_two_folders(house):
    folders = [house.run().folder for _ in range(2)]
    assert folders[0].name != folders[1].name
