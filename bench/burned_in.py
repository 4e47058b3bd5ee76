"""How often burned-in text is found: `python -m bench.burned_in FOLDER`, a folder with records.jsonl.

Each picture is judged as it is and with a name or date drawn into it (9 to 24 px, white, yellow, grey or outlined, at an
edge or anywhere). Prints per modality how many were found with and without it.
"""

import json
import random
import sys
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from corpus.burned_in import seems_to_carry_text
from corpus.params import BurnedInParams

COLOURS = (("white", 0), ("yellow", 0), ("#b4b4b4", 0), ("white", 1))
TEXTS = ("SMITH, JANE", "DOE JOHN M", "Garcia, Maria", "12/03/1957", "ID 4471902", "MÜLLER HANS 1948-11-02", "05.06.2014 14:31:07")


def planted(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture with a line of text that fits into it."""
    picture = picture.convert("RGB")
    draw, text = ImageDraw.Draw(picture), rng.choice(TEXTS)
    font = ImageFont.load_default(rng.choice((9, 10, 11, 12, 14, 16, 20, 24)))
    while draw.textlength(text, font) > picture.width - 6 and font.size > 9:
        font = ImageFont.load_default(font.size - 1)
    right, low = max(3, picture.width - int(draw.textlength(text, font)) - 3), picture.height - int(font.size * 1.3) - 3
    place = rng.choice(((3, 3), (right, 3), (3, low), (rng.randint(0, right), rng.randint(0, low))))
    colour, outline = rng.choice(COLOURS)
    draw.text(place, text, colour, font, stroke_width=outline, stroke_fill="black")
    return picture


def main(folder: Path) -> None:
    """Measure and print."""
    rng, counts = random.Random(0), defaultdict(lambda: [0, 0, 0])
    least = BurnedInParams().letters
    for line in (folder / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        picture = Image.open(folder / record["image"]).convert("RGB")
        if min(picture.size) >= 100:
            found = counts[record["modality"]]
            found[0] += 1
            found[1] += seems_to_carry_text(picture) >= least
            found[2] += seems_to_carry_text(planted(picture, rng)) >= least
    for modality, (pictures, as_is, with_text) in sorted(counts.items()):
        print(f"{modality:15} {pictures:5} pictures, found in {as_is / pictures:.0%} as they are, {with_text / pictures:.0%} with text drawn in")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
