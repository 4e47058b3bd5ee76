"""UniMed-mini: procedural phantoms of UniMed-5M's eight modalities, with exact ground truth."""
