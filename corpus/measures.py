"""What later checks want to know of pictures, measured many at once: an array operation takes as long for one small picture as for thirty."""

from collections import defaultdict

import numpy as np
from PIL import Image as Pillow

from corpus.features import features
from corpus.look import looks

# More at a time would leave the processor's cache.
_AT_ONCE = 32


class Measuring:
    """Pictures that are being measured. Of each only a small copy is held."""

    def __init__(self) -> None:
        self._waiting: dict[tuple, list[tuple[np.ndarray, np.ndarray | None, dict]]] = defaultdict(list)

    def add(self, picture: Pillow.Image) -> dict:
        """What is known of an L or RGB picture: its entropy in bits, and after `finish` its look (see `corpus.look`) and features."""
        # A large picture is first made smaller, cheaply: every measure is of its gross features.
        small = picture.reduce(max(1, min(picture.size) // 64))
        coloured = small.mode == "RGB"
        grey = small.convert("L") if coloured else small
        known = {"entropy": round(grey.entropy(), 4)}
        self._waiting[grey.size, coloured].append((np.asarray(grey), np.asarray(small) if coloured else None, known))
        return known

    def finish(self) -> None:
        """Complete what `add` returned."""
        for (_, coloured), alike in self._waiting.items():
            for start in range(0, len(alike), _AT_ONCE):
                greys, colours, known = zip(*alike[start : start + _AT_ONCE])
                grey = np.stack(greys)
                seen = features(grey, np.stack(colours) if coloured else None)
                for found, look, row in zip(known, looks(grey), seen):
                    found |= {"look": look, "features": row.tobytes().hex()}
        self._waiting.clear()
