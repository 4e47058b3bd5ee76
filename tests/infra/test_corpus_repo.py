"""The clone where releases are made is nobody's but ours: what the user has set for git and DVC does not reach it."""

import os
import shutil
import subprocess

import pytest

from infra.corpus_repo import OUT, CorpusRepo, RepositoryError
from infra.settings import Settings

TAG = "corpus/2026-01-01.1"


def git(folder, *arguments: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(["git", *arguments], cwd=folder, env=plain, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path):
    """A user's repository with a release stage."""
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    (folder / ".dvc" / "config").write_text("[core]\n    analytics = false\n    remote = s3\n")
    (folder / "dvc.yaml").write_text(f"stages:\n  release:\n    cmd: mkdir -p {OUT} && echo shard > {OUT}/shard\n    outs:\n      - {OUT}:\n          persist: true\n")
    (folder / "params.yaml").write_text("corpus: {}\n")
    (folder / "sources.yaml").write_text("sources: []\n")
    git(folder, "init", "--quiet")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "--quiet", "--allow-empty", "-m", "begin")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "commit", "--quiet", "-m", "stage")
    return folder


@pytest.fixture
def settings(checkout, tmp_path):
    return Settings(state_dir=tmp_path / "state", repo_dir=checkout, params_file=checkout / "params.yaml")


def make(settings: Settings) -> CorpusRepo:
    """A release, as far as the clone goes: once by `dvc repro`, then by what this process builds."""
    repo = CorpusRepo(settings)
    with repo.held():
        repo.prepare(released=[])
        repo.reproduce()
        (repo.path / OUT / "more").write_text("of this process")
        repo.take_up()
        repo.commit_and_tag("Release", TAG)
    return repo


def assert_made(repo: CorpusRepo, checkout) -> None:
    assert repo.tags() == [TAG] and {*repo.files()} == {"shard", "more"}
    assert git(checkout, "tag", "--list") == "" and git(checkout, "branch", "--list", "corpus") == "" and git(checkout, "status", "--porcelain") == ""


def test_signing_hooks_and_a_shared_cache_of_the_user_are_left_alone(settings, checkout, tmp_path, monkeypatch):
    home, ran = tmp_path / "home", tmp_path / "ran"
    (home / ".config" / "dvc").mkdir(parents=True)
    (home / ".config" / "dvc" / "config").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n    type = symlink\n")
    for hook in ("pre-commit", "post-checkout", "commit-msg"):
        (home / hook).write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
        (home / hook).chmod(0o755)
    (home / ".gitconfig").write_text(f"[commit]\n gpgsign = true\n[tag]\n gpgsign = true\n[gpg]\n program = false\n[core]\n hooksPath = {home}\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    repo = make(settings)
    assert_made(repo, checkout)
    assert not ran.exists() and not (tmp_path / "shared").exists() and not (repo.path / OUT / "shard").is_symlink()


def test_the_repository_a_user_is_in_is_not_the_one_that_is_written(settings, checkout, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    for name, value in {"GIT_DIR": other / ".git", "GIT_WORK_TREE": other, "GIT_INDEX_FILE": other / ".git" / "index"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Anna")
    repo = make(settings)
    assert_made(repo, checkout)
    assert git(other, "tag", "--list") == "" and git(other, "status", "--porcelain") == "" and not (other / ".git" / "index").exists()
    assert git(repo.path, "log", "-1", "--format=%an, %cn").strip() == "Anna, UniMed Ops"


def test_a_cache_that_was_not_written_is_told_with_what_may_be_the_matter(settings):
    """On a full disk `dvc commit` ends as if all were well."""
    repo = make(settings)
    shutil.rmtree(repo.path / ".dvc" / "cache")
    with pytest.raises(RepositoryError, match="is the disk full"):
        repo.files()
