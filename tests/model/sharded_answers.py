"""Two processes that hold half of the network each ask it and draw with it; run by test_parallelize.

The second takes its answer for ended at once, as a processor that rounds otherwise may: both must make as many steps all the same.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch.distributed.device_mesh import init_device_mesh

from model import UniMedVL, generate
from model.parallelize import load_sharded

QUESTION = "Is this an image of the chest?"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}


def asked(model: UniMedVL) -> dict:
    """An answer and the log-probabilities of its tokens, and the values of two drawings."""
    picture = Image.fromarray(np.arange(28 * 42 * 3, dtype=np.uint8).reshape(28, 42, 3))
    with torch.no_grad():
        answer = model.chat([picture, QUESTION], max_new_tokens=6)
        drawn = model.draw_batch([["CT image of the abdomen."], [picture, "no"]], seeds=[3, 4], steps=4, size=(64, 64))
    return {"answer": answer.text, "logprobs": answer.logprobs, "drawn": [np.asarray(image).tolist() for image in drawn]}


def decode_ends(model: UniMedVL, *how, decode=generate.decode):
    for tokens, scores in decode(model, *how):
        yield [model.config.special_tokens.eos_token_id] * len(tokens), scores


def main(rank: int, world: int, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    if rank:
        generate.decode = decode_ends
    for name, compute_dtype in PRECISIONS.items():
        found = asked(load_sharded(folder, init_device_mesh("cpu", (world,)), compute_dtype).eval())
        if rank == 0:
            (out / f"{name}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:]))
