"""An answer ends before the first of the texts that were asked to stop it."""


class Stops:
    """Lets an answer pass piece by piece; what may be the beginning of a stop is held back until it is known."""

    def __init__(self, stops: list[str]):
        self.stops, self._held = stops, ""

    def passed(self, text: str, last: bool) -> tuple[str, bool]:
        """What may be shown now that `text` has come, and whether a stop ends the answer here."""
        self._held += text
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        kept = 0 if last else max((n for stop in self.stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        end = len(self._held) - kept
        shown, self._held = self._held[:end], self._held[end:]
        return shown, False
