"""The review queue through the command line, on the whole stack."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.loop.test_patients import unimed


@pytest.fixture(scope="module")
def release(stack, tmp_path_factory):
    """The tag of a release whose source has a name burned into one picture."""
    folder, lines = tmp_path_factory.mktemp("ward"), []
    for n in range(40):
        coarse = np.random.default_rng(500 + n).integers(0, 120, (8, 8), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((220, 220), Image.Resampling.BICUBIC)
        if n == 0:
            ImageDraw.Draw(picture).text((8, 8), "SMITH, JANE", "white", font_size=20)
        picture.save(folder / f"{n}.png")
        known = {"modality": "Ultrasound", "license": "CC0-1.0", "source": "ward", "caption": f"Ultrasound image number {n}."}
        lines.append(json.dumps({"id": f"u{n}", "image": f"{n}.png", "patient": f"p{n}", **known}))
    (folder / "records.jsonl").write_text("\n".join(lines))
    assert unimed("add", str(folder), "--workers", "1", "--json")["reasons"] == {"burned-in-text": 1}
    return unimed("release", "--json")["tag"]


def test_the_queue_is_listed_with_pictures_and_decided(release, tmp_path):
    waiting = unimed("review", "--list", "--json", "--pictures", str(tmp_path), "--size", "100")
    case = next(c for c in waiting if c["record"] == "ward/u0")
    assert (case["reason"], case["kept"]) == ("burned-in-text", False) and Image.open(case["picture"]).size == (220, 220)
    assert {"audit"} < {c["reason"] for c in waiting} and "unimed-mini" in {c["source"] for c in waiting}
    assert unimed("review", "--list", "--json", "--size", "100") == [{k: v for k, v in c.items() if k != "picture"} for c in waiting]
    # Fewer cases than groups: what was kept aside comes before the audit.
    assert [c["reason"] != "audit" for c in unimed("review", "--list", "--json", "--size", "1")] == [True]
    assert unimed("review", "ward/u0#g", "--accept", "--note", "a phantom's name", "--reviewer", "anna", "--json")["how"] == "decided"
    assert "accepted by anna" in unimed("review", "ward/u0", "--reject", "--reviewer", "ben", code=3)
    unimed("review", "ward/u5", "--reject", "--note", "blurred", "--reviewer", "ben")
    assert not {"ward/u0", "ward/u5"} & {c["record"] for c in unimed("review", "--list", "--json", "--size", "100")}
    after = unimed("release", "--json")
    assert after["how"] == "released" and after["card"]["reasons"]["rejected-by-reviewer"] == 1 and "burned-in-text" not in after["card"]["reasons"]
    found = unimed("diff", release, after["tag"], "--json")
    assert (found["examples"]["added"], found["examples"]["removed"]) == (["ward/u0#g"], ["ward/u5#g"])
    assert unimed("release", "--json")["how"] == "up to date"
    assert "neither kept nor held" in unimed("review", "ward/nobody", "--accept", code=1)


def test_a_person_is_asked_one_case_after_the_other(release):
    command = [sys.executable, "-m", "flows.cli", "data", "review", "--size", "3", "--reviewer", "carla"]
    done = subprocess.run(command, input="s\nx\na\nfine\nq\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("accept, reject, skip or quit") == 4 and "3 of 3" in done.stdout and ".png" in done.stdout
