"""What is kept of a request: numbers and labels, never its pixels or words."""

import math
import re
from collections.abc import Sequence
from datetime import datetime

from corpus.vocabulary import MODALITIES

_WORD = re.compile(r"\w+")
# "X-ray" also reads as the end of "chest X-ray": the longest name found wins.
_MODALITY = re.compile("|".join(re.escape(name) for name in sorted(MODALITIES, key=len, reverse=True)), re.IGNORECASE)
_CANONICAL = {name.casefold(): name for name in MODALITIES}


def row(
    *,
    request_id: str,
    time: datetime,
    route: str,
    model_version: str,
    arm: str,
    status: int,
    latency_ms: float,
    prompt: str = "",
    answer: str = "",
    logprobs: Sequence[float] = (),
    embedding: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
    images: int = 0,
    prompt_tokens: int = 0,
    error_code: str | None = None,
    ttft_ms: float | None = None,
) -> dict:
    """One row of the request log; see `monitoring.request_log.SCHEMA` for the columns."""
    return {
        "request_id": request_id,
        "time": time,
        "route": route,
        "model_version": model_version,
        "arm": arm,
        "status": status,
        "error_code": error_code,
        "latency_ms": latency_ms,
        "ttft_ms": ttft_ms,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": len(logprobs),
        "n_images": images,
        "image_width": image_size[0] if image_size else None,
        "image_height": image_size[1] if image_size else None,
        "embedding": list(embedding) if embedding is not None else None,
        "prompt_chars": len(prompt),
        "prompt_words": len(_WORD.findall(prompt)),
        "answer_chars": len(answer),
        "answer_words": len(_WORD.findall(answer)),
        "predicted_modality": predicted_modality(answer),
        "confidence": confidence(logprobs),
    }


def predicted_modality(answer: str) -> str | None:
    """The canonical modality an answer names, or None."""
    found = _MODALITY.search(answer)
    return _CANONICAL[found.group().casefold()] if found else None


def confidence(logprobs: Sequence[float]) -> float | None:
    """Mean probability of the answer's tokens."""
    return sum(math.exp(p) for p in logprobs) / len(logprobs) if logprobs else None
