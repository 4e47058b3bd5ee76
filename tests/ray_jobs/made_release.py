"""Releases on S3 made of a few samples, without a corpus repository: for tests of what reads them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from PIL import Image as Pillow

from corpus import shards
from corpus.params import ShardParams
from corpus.sample import Image, Part, Sample
from infra.store import ObjectStore


def picture(seed: int, side: int = 48) -> Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.encode(Pillow.fromarray(coarse).resize((side, side), Pillow.Resampling.BICUBIC), lossy=True)


def sample(number: int, task: str = "understanding", modality: str = "CT", source: str = "made", split: str = "train", words: int = 3, image: Image | None = None) -> Sample:
    """A sample of a task; `words` make it longer or shorter."""
    asked = Part("text", "context", "what " * words)
    seen = (image or picture(number),) if task != "text" else ()
    parts = {
        "understanding": (Part("image", "context", image=0, views=("vit",)), asked, Part("text", "target", "yes", label="CLOSED")),
        "generation": (asked, Part("image", "target", image=0)),
        "text": (asked, Part("text", "target", "no", label="OPEN")),
    }[task]
    return Sample(f"{source}/{task}-{number}", task, modality, source, "CC0-1.0", "", split, f"p{number}", parts, seen)


def publish(samples: Iterable[Sample], store: ObjectStore, rows: int = 10, tag: str = "corpus/2000-01-01.1") -> dict:
    """The record of a release of these samples, by source in shards of so many rows."""
    by_source: dict[str, list] = defaultdict(list)
    for one in samples:
        by_source[one.source].append((one, 0))
    made = [shards.make(source, found[at : at + rows], ShardParams(row_group=4)) for source, found in by_source.items() for at in range(0, len(found), rows)]
    files = [_put(store, f"shards/{shard.name}{suffix}", data) for shard in made for suffix, data in ((".parquet", shard.data), (".index.parquet", shard.index))]
    return {"tag": tag, "shards": sorted(files, key=lambda file: file["path"]), "removed": _put(store, "removed.json", b"{}")}


def _put(store: ObjectStore, path: str, data: bytes) -> dict:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    key = f"made/{md5[:2]}/{md5[2:]}"
    store.put(key, data)
    return {"path": path, "md5": md5, "key": key, "size": len(data)}


def torn(image: Image) -> Image:
    """The picture with its bytes cut off."""
    return Image(image.data[: len(image.data) // 3], image.width, image.height, "dead" + image.sha256[4:])

