"""A job for tests: counts up slowly, leaving a trace of every start."""

import time
from pathlib import Path

from infra.jobs import entrypoint


def sleepy(inputs: dict) -> dict:
    with open(inputs["trace"], "a") as trace:
        trace.write("started\n")
    for second in range(inputs["seconds"]):
        print(f"second {second}", flush=True)
        time.sleep(1)
    if inputs.get("fail"):
        raise RuntimeError("the job was told to fail")
    return {"starts": len(Path(inputs["trace"]).read_text().splitlines())}


if __name__ == "__main__":
    entrypoint(sleepy)
