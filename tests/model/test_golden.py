"""The reference's own numbers: `python -m tests.golden FOLDER` does the same for any folder of this form."""

from pathlib import Path

import pytest

from tests.golden.checks import CHECKS
from tests.golden.fixture import Golden

FOLDER = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(FOLDER)


@pytest.mark.parametrize("case", CHECKS)
def test_the_reference_is_reproduced(golden, case):
    rows = list(CHECKS[case](golden))
    assert rows and [f"{row.what}: {row.error:.2e} > {row.tolerance:.1e}" for row in rows if not row.ok] == []


def test_saving_gives_back_the_same_files(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    for name in ("ema.safetensors", "ae.safetensors"):
        assert (tmp_path / name).read_bytes() == (FOLDER / "checkpoint" / name).read_bytes(), name
