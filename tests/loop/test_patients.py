"""A source that changes and a patient who must be forgotten, through the command line, on the whole stack."""

import io
import json
import re
import subprocess
import sys
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image


def unimed(*arguments: str, code: int = 0) -> dict | str:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "data", *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    return json.loads(done.stdout) if "--json" in arguments and not code else done.stdout + done.stderr


def fill(folder, numbers, source: str = "clinic") -> None:
    lines = []
    for n in numbers:
        coarse = np.random.default_rng(n).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(coarse).resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
        known = {"modality": "CT", "license": "CC0-1.0", "source": source, "caption": f"CT image number {n}."}
        lines.append(json.dumps({"id": f"r{n}", "image": f"{n}.png", "patient": f"Roe^Jane {n // 2}", **known}))
    (folder / "records.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def releases(stack, tmp_path_factory):
    """Tags of two releases, the second after a record went and another came."""
    folder, tags = tmp_path_factory.mktemp("clinic"), []
    for numbers in (range(40), range(1, 41)):
        fill(folder, numbers)
        taken = unimed("add", str(folder), "--json")
        assert taken["samples"] == {"kept": 40, "quarantined": 0}
        tags.append(unimed("release", "--json")["tag"])
    return tags


def test_what_changed_is_told(releases):
    found = unimed("diff", *releases, "--json")
    assert (found["added"], found["removed"], found["edited"]) == (1, 1, 0) and found["unchanged"] > 500
    assert found["examples"]["removed"] == ["clinic/r0#g"]
    assert "1 samples added, 1 removed" in unimed("diff", *releases)


def test_the_data_docs_are_linked(releases):
    link = re.search(r"24 of 24 expectations hold: (http\S+data-docs\S+)", unimed("show", releases[1]))
    with urlopen(link.group(1), timeout=10) as answer:
        page = answer.read().decode()
    assert answer.headers["Content-Type"] == "text/html" and f"<h1>{releases[1]}</h1>" in page and "<td>clinic</td>" in page


def test_a_sample_is_traced(releases):
    found = unimed("trace", "clinic/r7", "--json")
    assert [r["tag"] for r in found["releases"]] == releases
    key = found["releases"][0]["patients"][0]
    assert "Roe" not in json.dumps(found)
    both = unimed("trace", "--patient", key, "--json")["releases"][0]["samples"]
    assert both == ["clinic/r6#g", "clinic/r7#g"]
    assert "no release holds" in unimed("trace", "clinic/nobody", code=1)


def test_a_source_that_no_record_is_of_is_told(releases):
    """The records may be of another source than the one they were added as, and the patient's key with them."""
    added = next(source["name"] for source in unimed("list", "--json")["sources"] if source["name"].startswith("clinic"))
    told = unimed("forget", "Roe^Jane 6", "--source", added, code=1)
    assert "no source and no release holds patient" in told and re.search("records there are of .*clinic.*unimed-mini", told)


def test_a_patient_is_forgotten_and_purged(releases, s3):
    from infra.store import corpus_store

    key = unimed("trace", "clinic/r12", "--json")["releases"][0]["patients"][0]
    done = unimed("forget", "Roe^Jane 6", "--source", "clinic", "--purge", "--yes", "--json")
    assert done["patient"] == key and {r["tag"] for r in done["releases"]} == set(releases) and done["release"] not in releases
    record = next(r for r in unimed("list", "--json")["releases"] if r["tag"] == done["release"])
    assert unimed("verify", done["release"], "--json")["damaged"] == []
    assert unimed("trace", "clinic/r14", "--json")["releases"][-1]["tag"] == record["tag"]
    assert [r["samples"] for r in unimed("trace", "--patient", key, "--json")["releases"]] == [[], []]
    assert unimed("verify", releases[0], "--json")["damaged"] == []
    assert "purged on" in unimed("show", releases[0]) and "release, purged" in unimed("list")
    assert "was purged" in unimed("diff", releases[0], record["tag"], code=1)
    shards = [entry.key for entry in corpus_store().list() if entry.key.endswith(".parquet") and entry.key.startswith("intake/clinic")]
    objects = [entry.key for entry in corpus_store().list("dvc/")]
    import pyarrow.parquet as pq

    for stored in [*shards, *objects]:
        data = corpus_store().get(stored)
        if data[:4] == b"PAR1" and "patient" in (table := pq.read_table(io.BytesIO(data))).column_names:
            assert key not in table["patient"].to_pylist(), stored
