"""Folders that a machine's processes fill: one process at a time, and nothing of one that was killed stays."""

import resource
import subprocess
import sys

import pytest

from infra.folders import brought, passing
from infra.records import write_atomic

ENTER = "import sys; from pathlib import Path; from infra.folders import passing\nwith passing(Path(sys.argv[1])) as folder: (folder / 'theirs').touch(); print('in', flush=True); sys.stdin.read()"


def another(folder) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", ENTER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_whoever_comes_later_waits_and_finds_it_empty(tmp_path):
    with passing(tmp_path / "x") as mine:
        (mine / "mine").touch()
        other = another(mine)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
        assert (mine / "mine").exists()
    assert other.stdout.readline() == "in\n" and [path.name for path in mine.iterdir()] == ["theirs"]
    other.communicate("")
    assert not mine.exists()


def test_what_a_killed_process_has_left_goes(tmp_path):
    other = another(tmp_path / ".x")
    other.stdout.readline()
    other.kill()
    other.communicate()
    assert (tmp_path / ".x" / "theirs").exists()
    assert [path.name for path in brought(tmp_path / "x", lambda folder: (folder / "mine").touch()).iterdir()] == ["mine"]
    assert not (tmp_path / ".x").exists()


def test_where_there_is_no_room_is_told(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="large.*shard.parquet"):
            write_atomic(tmp_path / "shard.parquet", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
