"""Beginning with published weights: whether a folder holds the network that a profile describes.

The folder is checked by its files' headers, on the meta device: that takes no memory, whatever its size.
"""

from pathlib import Path

from model.checkpoint import open_checkpoint, read_config
from model.config import ModelConfig
from model.weights import CheckpointError

# What comes with weights and tokenizer, or changes nothing of what they compute: taken as it is, whatever the profile says.
OWN = {"vocab_size", "max_position_embeddings", "initializer_range", "scale_factor", "shift_factor"}


def start_config(folder: Path, wanted: ModelConfig) -> ModelConfig:
    """The configuration with which the folder's network begins a curriculum.

    Sizes are the folder's and must be the wanted ones. Vocabulary, special tokens and the VAE's scale go with the folder,
    pictures, sampling and time shift with `wanted`. Of what the folder does not say, `wanted` is taken for true.

    Raises:
        CheckpointError: naming file, key and shape, or the value in which folder and profile differ; or there is no tokenizer.
    """
    differing = _differences(read_config(folder, wanted), wanted)
    if differing:
        raise CheckpointError(f"{folder} is another network than the profile's: {'; '.join(differing)}")
    model, _, _ = open_checkpoint(folder, wanted)
    if model.tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer: put tokenizer.json there, or vocab.json and merges.txt, as they were published with the weights")
    own = {name: getattr(model.config, name) for name in ("llm", "vit", "vae", "special_tokens")}
    return wanted.model_copy(update=own)


def _differences(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    told = [_differing(f"model.{part}", getattr(found, part), getattr(wanted, part), type(getattr(wanted, part)).model_fields.keys() - OWN) for part in ("llm", "vit", "vae")]
    return [line for lines in [*told, _differing("model", found, wanted, {"latent_patch_size"})] for line in lines]


def _differing(where: str, found: object, wanted: object, names: set[str]) -> list[str]:
    pairs = ((name, getattr(found, name), getattr(wanted, name)) for name in sorted(names))
    return [f"{where}.{name} is {there!r} in the folder, {here!r} in the profile" for name, there, here in pairs if there != here]
