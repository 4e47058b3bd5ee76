"""One process that reads pictures as fast as it can: `python -m bench.contestants NAME PLAN`, for bench/loading.py.

Everybody decodes and resizes the same JPEGs with the same two functions. Peers are set up as their manuals have it for
speed: a torch DataLoader of two workers, batches of 32 stacked in the workers, a shuffle, shards of a few MB.
"""

import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from model.config import ModelConfig
from model.preprocess import fit, to_pixels

# The published rule at 224 px: 16 x 16 patches.
CONFIG = ModelConfig(image={"vit": {"max_size": 224, "min_size": 224, "stride": 14}}, vit={"image_size": 224}, vit_max_num_patch_per_side=16)
BATCH, SHARD_BYTES = 32, 8_000_000
# Name of the package by name of the peer.
PEERS = {"webdataset": "webdataset", "mosaicml-streaming": "streaming", "litdata": "litdata"}


def decoded(data: bytes) -> Tensor:
    return to_pixels(fit(Image.open(io.BytesIO(data)), CONFIG.image.vit))


def ours(plan: dict) -> Callable[[], int]:
    """The stage's loader on one of the streams: draw, read, decode, resize, tokenise and pack."""
    import pandas  # noqa: F401 (pyarrow imports it with the first table)

    from corpus.reader import ReleaseReader
    from corpus.shard_cache import ShardCache
    from infra.store import corpus_store
    from model.curriculum import StageParams
    from model.tokenizer import TextTokenizer
    from model.unimedvl import UniMedVL
    from ray_jobs.loader import Loader
    from ray_jobs.plans import Planner

    model = UniMedVL(CONFIG)
    model.tokenizer = TextTokenizer.train([plan["question"]], CONFIG.llm.vocab_size)
    stage = StageParams(name="reading", steps=1, mixture={"understanding": 1}, learning_rate=1, tokens_per_pack=4096)
    store = corpus_store()
    store.exists("peers")  # imports boto3, which is no part of reading

    class Counting(Planner):
        """Counts all samples that are decoded: the loader's thread is ahead of the packs it hands out, and has no last one."""

        count = 0

        def plan(self, *of_a_draw) -> list:
            self.count += 1
            return super().plan(*of_a_draw)

    def read() -> int:
        planner, reader = Counting(model, stage), ReleaseReader(plan["release"], ShardCache(store, Path(plan["cache"])))
        loader = Loader(reader, planner, stage, plan["seed"], [plan["rank"]], plan["ranks"])
        while planner.count < plan["count"] // plan["ranks"]:
            next(loader)
        loader.close()
        return planner.count

    return read


def bare(plan: dict) -> Callable[[], int]:
    """Nothing but decoding and resizing of what lies in memory."""
    data = [path.read_bytes() for path in _pictures(plan)[plan["rank"] :: plan["ranks"]]]
    return lambda: sum(len(decoded(one)[None]) for one in data)


def shortest(plan: dict) -> Callable[[], int]:
    """The same and bringing it from the store, shard by shard, in as few lines as that takes: the most that ours could reach beside `bare`.

    Nothing is drawn in another order, checked, kept, tokenised or packed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from corpus.shards import INDEX
    from infra.store import corpus_store

    store = corpus_store()
    store.exists("peers")
    keys = [file["key"] for file in plan["release"]["shards"] if not file["path"].endswith(INDEX)][plan["rank"] :: plan["ranks"]]

    def pictures() -> Iterable[bytes]:
        for key in keys:
            for images in pq.ParquetFile(pa.BufferReader(store.get(key))).read(["images.list.element.data"], use_threads=False)["images"]:
                yield images[0]["data"].as_py()

    return lambda: sum(len(decoded(one)[None]) for one in pictures())


def webdataset(plan: dict) -> Callable[[], int]:
    """Tar shards by presigned links."""
    import webdataset as wds

    def read() -> int:
        data = wds.WebDataset(plan["urls"], shardshuffle=len(plan["urls"]), seed=plan["seed"]).shuffle(256).map(lambda sample: decoded(sample["jpg"])).batched(BATCH, collation_fn=torch.stack)
        return _count(wds.WebLoader(data, batch_size=None, num_workers=2))

    return read


def write_webdataset(plan: dict) -> None:
    import webdataset as wds

    with wds.ShardWriter(f"{plan['folder']}/%04d.tar", maxsize=SHARD_BYTES, verbose=0) as writer:
        for path in _pictures(plan):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes()})


def mosaicml_streaming(plan: dict) -> Callable[[], int]:
    """MDS shards."""
    from streaming import StreamingDataset

    class Pictures(StreamingDataset):
        def __getitem__(self, number: int) -> Tensor:
            return decoded(super().__getitem__(number)["jpg"])

    def read() -> int:
        data = Pictures(remote=plan["remote"], local=plan["cache"], shuffle=True, shuffle_seed=plan["seed"], batch_size=BATCH)
        return _count(DataLoader(data, batch_size=BATCH, num_workers=2))

    return read


def write_mosaicml_streaming(plan: dict) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=plan["remote"], columns={"jpg": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for path in _pictures(plan):
            writer.write({"jpg": path.read_bytes()})


def litdata(plan: dict) -> Callable[[], int]:
    """Chunks as `optimize` writes them."""
    from litdata import StreamingDataLoader, StreamingDataset

    _allow_http()

    def read() -> int:
        data = StreamingDataset(plan["remote"], cache_dir=plan["cache"], shuffle=True, seed=plan["seed"], storage_options={"endpoint_url": plan["endpoint"]}, transform=decoded)
        return _count(StreamingDataLoader(data, batch_size=BATCH, num_workers=2))

    return read


def write_litdata(plan: dict) -> None:
    from litdata import optimize

    _allow_http()
    options = {"endpoint_url": plan["endpoint"]}
    optimize(Path.read_bytes, _pictures(plan), plan["remote"], chunk_bytes=SHARD_BYTES, num_workers=1, storage_options=options, verbose=False)


def _allow_http() -> None:
    """litdata's client of the store takes none but HTTPS, and no setting changes that."""
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True


def _pictures(plan: dict) -> list[Path]:
    return sorted(Path(plan["pictures"]).glob("*.jpg"))


def _count(batches: Iterable[Tensor]) -> int:
    return sum(len(batch) for batch in batches)


def _together(plan: dict) -> None:
    """Wait until all processes have imported what they need."""
    (Path(plan["start"]) / str(plan["rank"])).touch()
    end = time.monotonic() + 120
    while len(list(Path(plan["start"]).iterdir())) < plan["ranks"]:
        if time.monotonic() > end:
            raise TimeoutError("the other process did not come up")
        time.sleep(0.002)


def main(name: str, plan: dict) -> None:
    """Prints what was found on the last line: names of the peers there are, or {count, begun, ended} of a reading."""
    verb = globals().get(name.replace("-", "_"))
    if name == "peers":
        print(json.dumps([peer for peer, package in PEERS.items() if find_spec(package)]))
    elif name.startswith("write-"):
        verb(plan)
    else:
        torch.set_num_threads(1)
        read = verb(plan)
        _together(plan)
        begun = time.time()
        count = read()
        print(json.dumps({"count": count, "begun": begun, "ended": time.time()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
