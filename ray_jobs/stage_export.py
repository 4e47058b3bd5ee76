"""A finished stage as a checkpoint folder in the published layout: the start's tensors, the learned ones replaced by their average.

Tensors go from the run's shards to the folder a few gigabytes at a time: the whole network is never in memory.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint import HuggingFaceStorageReader

from infra.folders import passing
from infra.outage import patiently
from infra.settings import get_settings
from infra.store import ObjectStore
from model.checkpoint import TABLES, WEIGHTS, network_state, open_checkpoint, read_rows
from model.weights import Weights
from ray_jobs.stage_checkpoints import DamagedCheckpoint, checkpoints_prefix, committed, fetch, step_of
from ray_jobs.training_state import AVERAGE

PART_BYTES = 4 * 2**30
EMBEDDINGS = "language_model.model.embed_tokens.weight"


def export_average(start: Path, run: str, step: int, store: ObjectStore, out: Path, outage_minutes: float = 0.0, part_bytes: int = PART_BYTES) -> None:
    """Write the folder of the run's last checkpoint, of this step, to `out`: one `ema.safetensors`, or parts and their index if it is larger.

    Raises:
        DamagedCheckpoint: the checkpoint is gone or not whole.
        StoreUnavailable: the store stayed silent for `outage_minutes`.
        ValueError: a tensor is not finite.
    """
    with passing(get_settings().state_dir / "cache" / "exports" / run) as folder:
        patiently(lambda: _fetch_last(store, checkpoints_prefix(run), step, folder), outage_minutes)
        for path in start.iterdir():
            if path.is_file() and not _is_main(path.name):
                shutil.copy(path, out / path.name)
        model, weights, _ = open_checkpoint(start)
        if model.config.llm.vocab_size != weights.shapes[EMBEDDINGS][0]:
            # The stage has trained rows for special tokens that the start's files do not know yet.
            model.config.save(out)
            model.tokenizer.save(out)
        rows = {key: len(tensor) for key, tensor in network_state(model).items() if key not in TABLES}
        _write(_parts(weights, rows, folder, part_bytes), out)


def _fetch_last(store: ObjectStore, prefix: str, step: int, folder: Path) -> None:
    newest = next(iter(committed(store, prefix)), None)
    if newest is None or step_of(newest) != step:
        # The weights of an earlier one are not those that the stage has ended with.
        raise DamagedCheckpoint(f"the checkpoint of step {step} under {prefix} is gone, or its marker; the same command goes on from the one before")
    fetch(store, f"{prefix}{newest}", folder)


def _is_main(name: str) -> bool:
    """Whether a file holds tensors of the main network, or their index: the VAE's stay."""
    return name.startswith(("ema", "model")) and ".safetensors" in name


def _parts(weights: Weights, rows: dict[str, int], checkpoint: Path, part_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    """The network's tensors, with so many rows, in parts of at most so many bytes."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    learned = reader.read_metadata().state_dict_metadata
    part: dict[str, torch.Tensor] = {}
    size = 0
    for key in sorted(weights.shapes):
        tensor = read_rows(weights, key, rows.get(key, weights.shapes[key][0]))
        if AVERAGE + key in learned:
            tensor = torch.empty_like(tensor, dtype=torch.float32)
        if part and size + tensor.nbytes > part_bytes:
            yield _filled(part, learned, checkpoint)
            part, size = {}, 0
        part[key] = tensor
        size += tensor.nbytes
    yield _filled(part, learned, checkpoint)


def _filled(part: dict[str, torch.Tensor], learned: dict, checkpoint: Path) -> dict[str, torch.Tensor]:
    averaged = {AVERAGE + key: tensor for key, tensor in part.items() if AVERAGE + key in learned}
    dcp.load(averaged, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    for key, tensor in part.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{key} holds what is no finite number; such a network is not published")
    return {key: tensor.contiguous() for key, tensor in part.items()}


def _write(parts: Iterator[dict[str, torch.Tensor]], out: Path) -> None:
    """The first part waits for a second: a single one is the published single file."""
    first, where, size = next(parts), {}, 0
    second = next(parts, None)
    if second is None:
        save_file(first, out / WEIGHTS)
        return
    for number, part in enumerate(_again(first, second, parts), start=1):
        name = f"ema-{number:05d}.safetensors"
        save_file(part, out / name)
        where |= dict.fromkeys(part, name)
        size += sum(tensor.nbytes for tensor in part.values())
    (out / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}, indent=1, sort_keys=True))


def _again(first: dict, second: dict, rest: Iterator[dict]) -> Iterator[dict]:
    yield first
    yield second
    yield from rest
