import os

import pytest

from sae_lightning.files import remove_leftovers, replacing, write_text


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / "new" / "file"
    write_text(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "one"
    write_text(path, "two")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"file": "two"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_is_for_whom_new_files_are(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors writes
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_the_one_before_is_kept_where_that_is_asked_for(tmp_path):
    path, previous = tmp_path / "file", tmp_path / "before"
    for text in ("one", "two", "three"):
        with replacing(path, previous) as temporary:
            temporary.write_text(text)
    with pytest.raises(FileNotFoundError), replacing(path, previous):
        pass
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "three", "before": "two"}


def test_leftovers_of_other_processes_are_removed_at_any_depth(tmp_path):
    kept = [f".a.json.{os.getpid()}.tmp", "b.1.tmp", ".c.tmp", ".d.x.tmp", ".e.1.txt"]
    for name in [*kept, ".a.json.1.tmp", ".weights.99999999.tmp", ".tmpDp4Ysb"]:
        for folder in (tmp_path, tmp_path / "x" / "y"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    remove_leftovers(tmp_path)
    for folder in (tmp_path, tmp_path / "x" / "y"):
        assert sorted(file.name for file in folder.iterdir() if file.is_file()) == sorted(kept)
