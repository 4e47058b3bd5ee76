"""The house's floors: a room imports only downwards, and corpus and model do not know each other."""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FLOORS = {"infra": 1, "corpus": 2, "model": 2, "monitoring": 3, "ray_jobs": 4, "flows": 5}
FORBIDDEN = {"ray_jobs": {"prefect"}, "monitoring": {"prefect", "ray"}, "corpus": {"prefect", "ray", "torch"}, "model": {"prefect", "ray", "boto3", "dvc", "infra"}}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", FLOORS)
def test_a_room_imports_only_downwards(room):
    for path in (REPO / room).rglob("*.py"):
        used = imports(path)
        upward = {other for other in used & FLOORS.keys() if other != room and FLOORS[other] >= FLOORS[room]}
        assert not upward, f"{path.relative_to(REPO)} imports {upward} from the same floor or above"
        assert not used & FORBIDDEN.get(room, set()), f"{path.relative_to(REPO)} imports {used & FORBIDDEN[room]}"


def test_the_command_line_starts_without_heavy_imports():
    import subprocess
    import sys

    code = "import sys, flows.cli; print([m for m in ('torch', 'ray', 'prefect', 'boto3', 'evidently', 'great_expectations', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO).stdout.strip() == "[]"
