"""Samples become packed items: which view of an image, which turns, what is dropped for guidance.

Plans follow the released UniMedVL loaders: a picture to be understood may lose its ViT view and a
prompt to draw may lose its text; editing samples never lose a condition.
"""

import io
import random
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from corpus.sample import Image, Part, Sample
from model import UniMedVL
from model.config import ResizeRule
from model.curriculum import StageParams
from model.fused import COMPILING
from model.packing import Item, TextItem, VAEItem, ViTItem
from model.preprocess import fit, resize, to_planes

# Pictures seen once that are known again: as many small ones (4 KB) as half of the cache holds.
SEEN = 2**17


class Planner:
    """Turns samples into items for one network, and remembers decoded pictures by content.

    With `half` a GPU's VAE encodes pictures to be drawn in bfloat16, as the published training has it.
    """

    def __init__(self, model: UniMedVL, stage: StageParams, cached_bytes: int = 2**30, half: bool = False):
        self.stage, self.config = stage, model.config
        self._half = half
        self._encode = model.encode_images
        self._ids = lru_cache(maxsize=2**16)(model.tokenizer.encode)
        self._vit_rule = _within(model.config.image.vit, stage.resolution.vit)
        self._vae_rule = _within(model.config.image.vae, stage.resolution.vae)
        self._edged = _by_content(self._load_edged, cached_bytes // 2, at_once=False)
        self._latent = _by_content(self._load_latent, cached_bytes // 2, at_once=True)

    def plan(self, sample: Sample, rng: random.Random) -> list[Item]:
        """Items of one draw of a sample; `rng` decides turns, dropout and noise level."""
        if sample.task == "understanding":
            return self._understanding(sample, rng)
        drop_text = sample.task == "generation" and rng.random() < self.stage.dropout.text
        return [item for part in sample.parts for item in self._items(sample, part, rng, drop_text)]

    def _understanding(self, sample: Sample, rng: random.Random) -> list[Item]:
        drop = rng.random() < self.stage.dropout.vit
        shown = [sample.images[p.image] for p in sample.parts if p.kind == "image"]
        images = [ViTItem(self._shifted(image, rng, len(shown)), drop) for image in shown]
        texts = [p for p in sample.parts if p.kind == "text"]
        turns = list(zip(texts[::2], texts[1::2]))
        chosen = rng.sample(turns, min(len(turns), self.stage.max_turns))
        return images + [item for q, a in chosen for item in (TextItem(self._ids(q.text)), TextItem(self._ids(a.text), loss=True))]

    def _items(self, sample: Sample, part: Part, rng: random.Random, drop_text: bool) -> list[Item]:
        target = part.role == "target"
        if part.kind == "text":
            return [TextItem(self._ids(part.text), loss=target, dropped=drop_text and not target)]
        image = sample.images[part.image]
        if target:
            return [VAEItem(self._latent(image), draw=rng.gauss(0, 1))]
        items = [VAEItem(self._latent(image))] if "vae" in part.views else []
        return items + ([ViTItem(self._window(image, self.stage.shift_pixels, self.stage.shift_pixels))] if "vit" in part.views else [])

    def _shifted(self, image: Image, rng: random.Random, images: int) -> Tensor:
        """The picture, one of `images`, moved a little, its edge pixels repeated."""
        most = self.stage.shift_pixels
        return self._window(image, rng.randint(0, 2 * most), rng.randint(0, 2 * most), images) if most else self._window(image, 0, 0, images)

    def _window(self, image: Image, top: int, left: int, images: int = 1) -> Tensor:
        """So much of the picture and its edges as the picture has pixels."""
        edged, edges = self._edged(image, images), 2 * self.stage.shift_pixels
        shown = edged[:, top : top + edged.shape[1] - edges, left : left + edged.shape[2] - edges] if edges else edged
        return shown.expand(3, -1, -1)

    def _load_edged(self, data: bytes, images: int) -> Tensor:
        """The planes of a picture among `images`, with as many edge pixels on every side as it may be moved."""
        planes, most = to_planes(fit(Pillow.open(io.BytesIO(data)), self._vit_rule, images)), self.stage.shift_pixels
        return F.pad(planes, (most, most, most, most), mode="replicate") if most else planes

    def _load_latent(self, data: bytes) -> Tensor:
        picture = resize(Pillow.open(io.BytesIO(data)), self._vae_rule)
        with COMPILING, torch.autocast("cuda", torch.bfloat16, enabled=self._half):
            return self._encode([picture])[0].float().cpu()


def _within(rule: ResizeRule, sides: tuple[int, int] | None) -> ResizeRule:
    """A resize rule with a stage's shortest and longest side."""
    return rule.model_copy(update={"min_size": sides[0], "max_size": sides[1]}) if sides else rule


def _by_content(load: Callable[..., Tensor], most: int, at_once: bool) -> Callable:
    """Cache `load` by the image's hash rather than by its bytes, and what else it is told.

    What is cheap is held from its second sight on, so that a pass over what comes once takes no memory. The results may
    take so many bytes, and those held stay: passes are shuffled, and giving up the oldest would lose most before they come again.
    """
    held: dict[tuple, Tensor] = {}
    seen: set[int] = set()
    size = 0

    def get(image: Image, *told: int) -> Tensor:
        nonlocal size
        key = (image.sha256, *told)
        found = held.get(key)
        if found is None:
            found = load(image.data, *told)
            if not at_once and hash(key) not in seen:
                if len(seen) == SEEN:
                    seen.clear()
                seen.add(hash(key))
            elif size + found.nbytes <= most:
                held[key] = found
                size += found.nbytes
        return found

    return get
