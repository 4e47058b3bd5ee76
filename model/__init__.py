"""UniMedVL itself in plain PyTorch: one network that understands and generates medical images.

`from model import UniMedVL; UniMedVL.from_pretrained(folder)` is all that a notebook needs.
"""

__all__ = ["UniMedVL"]


def __getattr__(name: str):
    # Lazy: reading `model.config` or `model.curriculum` must not import torch.
    if name == "UniMedVL":
        from model.unimedvl import UniMedVL

        return UniMedVL
    raise AttributeError(f"module 'model' has no attribute {name!r}")
