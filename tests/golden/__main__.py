"""Check a folder of golden fixtures: `python -m tests.golden FOLDER`.

Prints the error of every comparison beside its tolerance; exits with 1 when one is over, or a case or what it must hold is missing.
"""

import argparse
import sys
from pathlib import Path

import torch

from tests.golden.checks import CHECKS
from tests.golden.fixture import Golden, Row


def rows_of(case: str, golden: Golden) -> list[Row]:
    """A case's comparisons; what is missing or breaks is a failed one."""
    try:
        return list(CHECKS[case](golden))
    except FileNotFoundError as error:
        return [Row(case, f"missing: {error}", float("inf"), 0)]
    except Exception as error:
        return [Row(case, f"{type(error).__name__}: {error}", float("inf"), 0)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds checkpoint/ and cases/")
    golden = Golden(parser.parse_args(arguments).folder)
    torch.manual_seed(0)
    found = [row for case in CHECKS for row in rows_of(case, golden)]
    for row in found:
        print(f"{'ok  ' if row.ok else 'OVER'}  {row.case:<26} {row.error:9.2e} {'rel' if row.relative else '   '} <= {row.tolerance:7.1e}  {row.what}")
    over = [row for row in found if not row.ok]
    print(f"\n{len(found)} comparisons in {len(CHECKS)} cases, {len(over)} over or missing")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
