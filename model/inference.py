"""Asking the network: chat (text out) and draw (image out), one or many at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from model import denoise, generate
from model.packing import Item, TextItem, VAEItem, ViTItem, item_cost, pack
from model.preprocess import resize, to_image, to_tensor, upright
from model.tokenizer import TextTokenizer

Parts = str | Sequence[str | Image]


@dataclass(frozen=True)
class Answer:
    """A decoded text, its tokens' log-probabilities and the token counts."""

    text: str
    logprobs: list[float]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Chunk:
    """One step of a streamed answer: new text (may be empty), log-probability, and at the end the reason.

    Where no token is asked for, the end is all there is: a step without text, of log-probability 0.
    """

    text: str
    logprob: float
    finish_reason: Literal["stop", "length"] | None


class InferenceMixin:
    """The public verbs of `UniMedVL`. Conversations are lists of texts and PIL images, in order, or one text."""

    def chat(self, parts: Parts, *, max_new_tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> Answer:
        """Answer one conversation; greedy at temperature 0.

        Raises:
            ValueError: as `chat_batch`.
        """
        return self.chat_batch([parts], max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[0]

    def chat_batch(self, conversations: Sequence[Parts], *, max_new_tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> list[Answer]:
        """Answer several conversations in one batch; each is independent of the others, and sampled with this seed as if alone.

        Raises:
            ValueError: `max_new_tokens` or `temperature` is negative or no finite number, or the network has no tokenizer.
        """
        if not conversations:
            return []
        context = self._understanding_context(conversations, max_new_tokens, temperature)
        prompt_tokens = context.lengths.tolist()
        eos = self.config.special_tokens.eos_token_id
        ids, logprobs, finished = [[] for _ in conversations], [[] for _ in conversations], [False] * len(conversations)
        for tokens, scores in generate.decode(self, context, max_new_tokens, temperature, seed):
            for row, (token, score) in enumerate(zip(tokens, scores)):
                if not finished[row]:
                    logprobs[row].append(score)
                    finished[row] = token == eos
                    ids[row].extend([] if finished[row] else [token])
            # Processes that share the weights make as many steps, whatever each of them answers.
            if all(finished) and not self.runs_every_part:
                break
        return [
            Answer(self.tokenizer.decode(i), p, n, len(p), "stop" if done else "length")
            for i, p, n, done in zip(ids, logprobs, prompt_tokens, finished)
        ]

    def stream_chat(self, parts: Parts, *, max_new_tokens: int = 48, temperature: float = 0.0, seed: int = 0) -> Iterator[Chunk]:
        """The same answer as `chat`, token by token."""
        context = self._understanding_context([parts], max_new_tokens, temperature)
        if not max_new_tokens:
            yield Chunk("", 0.0, "length")
        ids, shown = [], ""
        for (token,), (score,) in generate.decode(self, context, max_new_tokens, temperature, seed):
            if token == self.config.special_tokens.eos_token_id:
                # Whatever was held back as half a character is now final.
                yield Chunk(self.tokenizer.decode(ids)[len(shown) :], score, "stop")
                return
            ids.append(token)
            text = self.tokenizer.decode(ids)
            last = len(ids) == max_new_tokens
            held = "" if text.endswith("\ufffd") and not last else text[len(shown) :]
            shown += held
            yield Chunk(held, score, "length" if last else None)

    def count_tokens(self, parts: Parts) -> int:
        """Sequence tokens the conversation takes before the answer."""
        return sum(item_cost(self._understanding_item(part), self.config) for part in _each(parts))

    def draw(self, parts: Parts, *, seed: int = 0, **options) -> Image:
        """One image from a prompt, or from images and an instruction; options as in `draw_batch`."""
        return self.draw_batch([parts], seeds=[seed], **options)[0]

    @torch.inference_mode()
    def draw_batch(
        self,
        conversations: Sequence[Parts],
        *,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        size: tuple[int, int] | None = None,
    ) -> list[Image]:
        """Images for several conversations. Each depends on its own seed and parts alone.

        `size` is (width, height) in px; by default the size of the conversation's first input image, else
        `draw_size`. Sizes are rounded down to the latent stride. Seeds count up from 0 unless they are given.

        Raises:
            ValueError: there is not one seed for each conversation, a side is shorter than the latent stride or longer
                than the position table, or `steps` or a guidance means nothing.
        """
        seeds = range(len(conversations)) if seeds is None else [int(seed) for seed in seeds]
        if len(seeds) != len(conversations):
            raise ValueError(f"{len(seeds)} seeds for {len(conversations)} conversations: each needs its own")
        contexts = [self._generation_items(parts) for parts in conversations]
        drawn: dict[int, Image] = {}
        for (grid, edits), rows in self._drawn_together(contexts, size).items():
            settings = denoise.settings(self.config.sampling, has_images=edits, steps=steps, text=guidance, image=image_guidance)
            noise = torch.stack([self._noise(grid[0] * grid[1], seeds[row]) for row in rows]).to(self.device)
            tokens = denoise.sample(self, [contexts[row] for row in rows], noise, grid, settings)
            drawn |= zip(rows, map(to_image, self.vae.decode(denoise.to_latent(self, tokens, grid))))
        return [drawn[row] for row in range(len(contexts))]

    @torch.inference_mode()
    def embed(self, images: Sequence[Image]) -> np.ndarray:
        """Mean connector output of each image, float32 [n, hidden]: the model's own view of it."""
        if not images:
            return np.zeros((0, self.config.llm.hidden_size), np.float32)
        packed = pack([[self._vit_item(image)] for image in images], self.config).to(self.device)
        features = self.connector(self.vit_model(packed.vit_patches, packed.vit_position_ids, packed.vit_lengths))
        return torch.stack([f.mean(dim=0) for f in features.split(packed.vit_lengths)]).float().cpu().numpy()

    def _understanding_context(self, conversations: Sequence[Parts], max_new_tokens: int, temperature: float) -> generate.Context:
        for name, value in (("max_new_tokens", max_new_tokens), ("temperature", temperature)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: it must be a finite number, and not negative")
        self._words()
        items = [[self._understanding_item(part) for part in _each(parts)] for parts in conversations]
        return generate.prefill(self, items, max_new_tokens)

    def _generation_items(self, parts: Parts) -> list[Item]:
        items = []
        for part in _each(parts):
            if isinstance(part, str):
                items.append(self._text_item(part))
            else:
                canvas = resize(upright(part), self.config.image.vae)
                items += [self.vae_item(canvas), self._vit_item(canvas)]
        return items

    def vae_item(self, image: Image) -> VAEItem:
        """An image as a clean latent condition."""
        return VAEItem(self.encode_images([resize(upright(image), self.config.image.vae)])[0])

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image]) -> list[Tensor]:
        """Normalised latents (z, h, w) of RGB pictures of one size: the posterior's mean."""
        return list(self.vae.encode(torch.stack([to_tensor(image) for image in images])))

    def _understanding_item(self, part: str | Image) -> Item:
        return self._text_item(part) if isinstance(part, str) else self._vit_item(part)

    def _text_item(self, text: str) -> TextItem:
        return TextItem(self._words().encode(text))

    def _words(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise ValueError("this network has no tokenizer, since its folder holds none: it reads and writes ids alone")
        return self.tokenizer

    def _vit_item(self, image: Image) -> ViTItem:
        return ViTItem(to_tensor(resize(upright(image), self.config.image.vit)))

    def _noise(self, tokens: int, seed: int) -> Tensor:
        return torch.randn(tokens, self.config.latent_dim, generator=torch.Generator().manual_seed(seed))

    def _drawn_together(self, contexts: list[list[Item]], size: tuple[int, int] | None) -> dict[tuple[tuple[int, int], bool], list[int]]:
        """Rows of one batch by (latent grid, whether an image is given): these settle the guidance of a batch and its shape."""
        alike: dict[tuple[tuple[int, int], bool], list[int]] = {}
        for row, items in enumerate(contexts):
            latent = next((item.latent for item in items if isinstance(item, VAEItem)), None)
            alike.setdefault((self._latent_grid(latent, size), latent is not None), []).append(row)
        return alike

    def _latent_grid(self, latent: Tensor | None, size: tuple[int, int] | None) -> tuple[int, int]:
        """(rows, columns) of latent tokens for a wanted (width, height), else as the first input image has, else the default."""
        patch, stride = self.config.latent_patch_size, self.config.latent_stride
        if size is not None:
            if min(size) < stride:
                raise ValueError(f"size {size[0]}x{size[1]}: a side must have at least {stride} px")
            return size[1] // stride, size[0] // stride
        if latent is not None:
            return latent.shape[1] // patch, latent.shape[2] // patch
        side = self.config.image.draw_size // stride
        return side, side


def _each(parts: Parts) -> Sequence[str | Image]:
    """A text alone is a conversation of one part, not of its letters.

    Raises:
        TypeError: something is neither a text nor a PIL image.
    """
    if isinstance(parts, str):
        return [parts]
    for number, part in enumerate(parts):
        if not isinstance(part, str | Image):
            raise TypeError(f"part {number} is of type {type(part).__name__}: conversations are made of texts and PIL images, so open files with PIL.Image.open and arrays with PIL.Image.fromarray")
    return parts
