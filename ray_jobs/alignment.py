"""Scorers of picture and caption by networks: the champion, or a folder of a CLIP-type model. Without either, `corpus.words`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from corpus.alignment import MakeScorer
from corpus.sample import Sample
from corpus.words import Words, caption
from infra.records import digest, file_sha256

CAPTIONS, BATCH = 5, 16
QUESTION = "Describe this image in one sentence."


def scorer(name: str) -> MakeScorer:
    """The scorer that params name: "words", "champion" (words until there is one), or the folder of a model.

    Raises:
        ValueError: there is no such scorer or folder.
    """
    if name == "words":
        return Words
    if name == "champion":
        return _champion
    if not Path(name).is_dir():
        raise ValueError(f"corpus.quality.alignment.scorer is {name!r}; it is words, champion, or a folder that is there")
    return lambda reference: Clip(Path(name), reference)


def _champion(reference: list[Sample]):
    from infra.registry import ModelRegistry

    champion = ModelRegistry().alias("champion")
    return Champion(champion.version, ModelRegistry().fetch(champion.version)) if champion else Words(reference)


class Champion:
    """The system's own encoders: S by captions that the model draws, M by what its two encoders hand to the decoder."""

    def __init__(self, version: str, folder: Path):
        from model import UniMedVL

        self.name, self.model = f"champion-{version}", UniMedVL.from_pretrained(folder)

    def score(self, pairs: list[Sample]) -> np.ndarray:
        """(S, M) of each pair [n, 2], both cosines."""
        return np.concatenate([self._batch(pairs[start : start + BATCH]) for start in range(0, len(pairs), BATCH)])

    def _batch(self, pairs: list[Sample]) -> np.ndarray:
        pictures = [sample.images[-1].open() for sample in pairs]
        asked = [[picture, QUESTION] for picture in pictures]
        drawn = [[answer.text for answer in self.model.chat_batch(asked, temperature=1.0, seed=seed)] for seed in range(CAPTIONS)]
        text = self._texts([caption(sample) for sample in pairs])
        agreement = np.max([(self._texts(captions) * text).sum(axis=1) for captions in drawn], axis=0)
        return np.stack([agreement, (_unit(self.model.embed(pictures)) * text).sum(axis=1)], axis=1)

    def _texts(self, texts: list[str]) -> np.ndarray:
        """Mean embedding of each text's tokens, of length 1; 0 for an empty text."""
        import torch

        with torch.inference_mode():
            means = [self.model.embed_text(torch.tensor(self.model.tokenizer.encode(text) or [0])).float().mean(dim=0).numpy() * bool(text) for text in texts]
        return _unit(np.stack(means))


class Clip:
    """A CLIP-type model by Hugging Face's transformers: M is its similarity, S that of captions of look-alikes of other patients.

    Weights are read from safetensors in the folder alone.
    """

    def __init__(self, folder: Path, reference: list[Sample]):
        from transformers import AutoModel, AutoProcessor

        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self.name = f"clip-{digest([[file_sha256(path) for path in sorted(folder.glob('*.safetensors'))], [sample.id for sample in reference]])[:16]}"
        self.patients = np.array([sample.patient for sample in reference])
        self.looks, self.captions = self._pictures(reference), self._texts(reference)

    def score(self, pairs: list[Sample]) -> np.ndarray:
        """(S, M) of each pair [n, 2], both cosines; NaN where no other patient is there to compare with."""
        looks, texts = self._pictures(pairs), self._texts(pairs)
        values = np.full((len(pairs), 2), np.nan, dtype=np.float32)
        for row, sample in enumerate(pairs):
            others = np.flatnonzero(self.patients != sample.patient)
            alike = others[np.argsort(-(self.looks[others] @ looks[row]))[:CAPTIONS]]
            if len(alike):
                values[row] = (self.captions[alike] @ texts[row]).max(), looks[row] @ texts[row]
        return values

    def _pictures(self, samples: list[Sample]) -> np.ndarray:
        return self._embedded(samples, lambda part: self.processor(images=[s.images[-1].open().convert("RGB") for s in part], return_tensors="pt"), self.model.get_image_features)

    def _texts(self, samples: list[Sample]) -> np.ndarray:
        return self._embedded(samples, lambda part: self.processor(text=[caption(s) for s in part], return_tensors="pt", padding=True, truncation=True), self.model.get_text_features)

    def _embedded(self, samples: list[Sample], prepare: Callable, encode: Callable) -> np.ndarray:
        import torch

        with torch.inference_mode():
            found = [encode(**prepare(samples[start : start + BATCH])) for start in range(0, len(samples), BATCH)]
        # Newer models return the encoder's output whole.
        return _unit(np.concatenate([getattr(vectors, "pooler_output", vectors).float().numpy() for vectors in found]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
