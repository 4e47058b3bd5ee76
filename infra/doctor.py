"""Is this machine fit, and what mends it where it is not?"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.settings import get_settings
from infra.stack import Stack

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str
    mend: str


def examine(read_params: Callable[[], object]) -> list[Check]:
    """All checks, cheap ones first."""
    return [*_machine(), _packages(), *_tools(), _params(read_params), _secrets(), *_services()]


def _machine() -> Iterator[Check]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", (3, 11) <= sys.version_info[:2] <= (3, 12), found, "use Python 3.11: `make clean-env env`")
    settings = get_settings()
    home = next(folder for folder in (settings.state_dir, *settings.state_dir.parents) if folder.exists())
    free = shutil.disk_usage(home).free / GIB
    yield Check("disk", free > 5, f"{free:.0f} GiB free at {settings.state_dir}", "free 5 GiB, or point UNIMED_STATE_DIR elsewhere")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    yield Check("memory", memory > 6, f"{memory:.0f} GiB", "the tiny profile needs 6 GiB")


def _packages() -> Check:
    lock = get_settings().repo_dir / "requirements.lock"
    wrong = []
    for line in lock.read_text().splitlines():
        name, _, wanted = line.partition("==")
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if wanted and found.split("+")[0] != wanted:
            wrong.append(f"{name} {found} instead of {wanted}")
    return Check("packages", not wrong, f"{len(wrong)} differ from the lock: {'; '.join(wrong[:3])}" if wrong else "as locked", "make env")


def _tools() -> Iterator[Check]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    for tool, mend in (("git", "install git"), ("weed", "make env"), ("dvc", "make env"), ("prefect", "make env"), ("ray", "make env")):
        found = shutil.which(tool, path=path)
        yield Check(tool, found is not None, found or "not found", mend)


def _params(read: Callable[[], object]) -> Check:
    try:
        return Check("params", True, f"profile {read().profile}", "")
    except ValueError as error:
        return Check("params", False, str(error), f"mend the key in {get_settings().params_file}")


def _secrets() -> Check:
    path = get_settings().state_dir / "stack.env"
    if not path.exists():
        return Check("credentials", True, "made at the first `unimed up`", "")
    mode = path.stat().st_mode & 0o777
    return Check("credentials", mode == 0o600, f"{path} has mode {mode:o}", f"chmod 600 {path}")


def _services() -> Iterator[Check]:
    for service in Stack().status():
        yield Check(service.name, service.running, service.url or ("running" if service.running else "not running"), f"unimed up (its log: {service.log})")
