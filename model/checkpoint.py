"""The published checkpoint folder: JSON configs, `ema.safetensors`, `ae.safetensors`, tokenizer files."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import ModelConfig
from model.tokenizer import COMPANIONS, TextTokenizer
from model.tokenizer import FILE as TOKENIZER
from model.weights import CheckpointError, Weights, weight_map

if TYPE_CHECKING:
    from model.unimedvl import UniMedVL

WEIGHTS, VAE_WEIGHTS = "ema.safetensors", "ae.safetensors"
# The published names, then the Hugging Face ones; the first that is there is read. The published loader takes the bf16 copy
# first; here it comes second: training wants what it was made from, and what is saved here must not hide behind an older copy.
WEIGHT_NAMES = (WEIGHTS, "ema_bf16.safetensors", "ema.safetensors.index.json", "model.safetensors.index.json", "model.safetensors")
# Fixed tables: computed anew where a folder lacks them or was made for another table size.
TABLES = ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed")
# What tensors may be of, as safetensors calls it.
FLOATS = ("F64", "F32", "BF16", "F16")


def network_state(model: "UniMedVL") -> dict[str, Tensor]:
    """Tensors of the main weights file, by published name."""
    return {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("vae.")}


def save_checkpoint(model: "UniMedVL", folder: Path) -> None:
    """Write the folder; equal weights give equal bytes. A tokenizer that lay there before is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save(folder)
    save_file({k: v.contiguous() for k, v in network_state(model).items()}, folder / WEIGHTS)
    save_file({k: v.contiguous() for k, v in model.vae.state_dict().items()}, folder / VAE_WEIGHTS)
    for name in (TOKENIZER, *COMPANIONS):
        (folder / name).unlink(missing_ok=True)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)


def load_checkpoint(folder: Path, device: str = "cpu") -> "UniMedVL":
    """The network with the folder's tensors; on the `meta` device its shapes alone, checked against the files."""
    model, weights, vae = open_checkpoint(folder)
    if device == "meta":
        return model
    fill(model, weights, device, ignore=("vae.",))
    fill(model.vae, vae, device)
    restore_tables(model)
    return model.eval().requires_grad_(False)


def files_of(names: Collection[str], read: Callable[[str], bytes]) -> list[str]:
    """Of the files in a folder, those that make up the checkpoint: configurations, tokenizer, and the weights that are loaded.

    Args:
        read: the content of a file; asked for an index alone.

    Raises:
        CheckpointError: the index is none.
    """
    main = next((name for name in WEIGHT_NAMES if name in names), None)
    shards = set(weight_map(read(main), main).values()) if main and main.endswith(".json") else set()
    small = {name for name in names if name.endswith((".json", ".txt")) and ".safetensors" not in name}
    return sorted((small | shards | {main, VAE_WEIGHTS}) & set(names))


def open_checkpoint(folder: Path, otherwise: ModelConfig | None = None) -> tuple["UniMedVL", Weights, Weights]:
    """The folder's network on the meta device, and the main and the VAE's tensors, unread; all three fit together.

    Args:
        otherwise: has what the folder does not say of its configuration; the published 14B by default.

    Raises:
        CheckpointError: naming file, key and shape.
    """
    model = empty_network(folder, otherwise)
    weights, vae = open_weights(folder)
    check_keys(model, weights, vae)
    _fit_vocabulary(model, folder)
    return model, weights, vae


def empty_network(folder: Path, otherwise: ModelConfig | None = None) -> "UniMedVL":
    """The folder's network on the meta device: no memory, real shapes; with its tokenizer."""
    from model.unimedvl import UniMedVL

    config, tokenizer = read_config(folder, otherwise), _read_tokenizer(folder)
    if tokenizer is not None:
        # Ids are the tokenizer's own: the published folder does not repeat them.
        config = config.model_copy(update={"special_tokens": tokenizer.special_tokens})
    try:
        with torch.device("meta"):
            model = UniMedVL(config)
    except (RuntimeError, ValueError, TypeError) as error:  # sizes beyond what a tensor can have are told in each of these ways
        raise CheckpointError(f"{folder}: no network has the sizes of its configuration: {error}") from error
    model.tokenizer = tokenizer
    return model


def open_weights(folder: Path) -> tuple[Weights, Weights]:
    """The main and the VAE's tensors, unread."""
    main = Weights.open(folder, WEIGHT_NAMES)
    return main, Weights.open(folder, (VAE_WEIGHTS,), prefix="module.")


def check_keys(model: "UniMedVL", weights: Weights, vae: Weights) -> None:
    """Every tensor there, none left over, all of the right shape and of floating-point numbers.

    Raises:
        CheckpointError: naming file, key and shape.
    """
    main = {key: tuple(tensor.shape) for key, tensor in network_state(model).items()}
    _compare(main, weights, optional=TABLES)
    _compare({key: tuple(tensor.shape) for key, tensor in model.vae.state_dict().items()}, vae)


def fill(module: nn.Module, weights: Weights, device: str, ignore: tuple[str, ...] = ()) -> None:
    """Give a meta module its tensors on a device, one by one, as they are stored; tables of another size stay empty."""
    for key, empty in list(module.state_dict().items()):
        if not (key.startswith(ignore) or (key in TABLES and weights.shapes.get(key) != tuple(empty.shape))):
            module.load_state_dict({key: read_rows(weights, key, len(empty)).to(device)}, strict=False, assign=True)


def read_rows(weights: Weights, key: str, rows: int) -> Tensor:
    """A tensor of so many rows; those that the file lacks, of added special tokens, are the mean of the others, as a start."""
    tensor = weights.read(key)
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor.mean(dim=0, keepdim=True).expand(missing, -1)]) if missing else tensor


def restore_tables(model: "UniMedVL") -> None:
    """Compute the position tables that the files did not bring."""
    from model.positions import sincos_table

    like = model.language_model.model.embed_tokens.weight
    for table, side in ((model.latent_pos_embed, model.config.max_latent_size), (model.vit_pos_embed, model.config.vit_max_num_patch_per_side)):
        if table.pos_embed.is_meta:
            table.pos_embed = nn.Parameter(sincos_table(side, model.config.llm.hidden_size).to(like), requires_grad=False)


def _fit_vocabulary(model: "UniMedVL", folder: Path) -> None:
    """Make room, on the meta device, for special tokens that had to be added to the tokenizer.

    Raises:
        CheckpointError: other ids have no row in the embeddings.
    """
    rows, llm = model.config.llm.vocab_size, model.language_model
    needed = max(model.config.special_tokens.model_dump().values()) + 1
    own = needed if model.tokenizer is None else model.tokenizer.rows
    if own > rows:
        raise CheckpointError(f"{folder}: {'special tokens' if model.tokenizer is None else 'the tokenizer'} with ids up to {own - 1}, but vocab_size is {rows}")
    if needed <= rows:
        return
    for part in (llm.model.embed_tokens, llm.lm_head):
        part.weight = nn.Parameter(part.weight.new_empty(needed, part.weight.shape[1]))
    llm.model.embed_tokens.num_embeddings = llm.lm_head.out_features = needed
    model.config = model.config.model_copy(update={"llm": model.config.llm.model_copy(update={"vocab_size": needed})})


def read_config(folder: Path, otherwise: ModelConfig | None = None) -> ModelConfig:
    """What the folder says of its network; `otherwise` has what it does not say.

    Raises:
        CheckpointError: a file is missing, cannot be read, or says what cannot be.
    """
    try:
        return ModelConfig.load(folder, otherwise)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing: not a UniMedVL checkpoint folder") from None
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise CheckpointError(f"{folder}: the configuration lacks {error}") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{folder}: the configuration is not valid: {error}") from error


def _read_tokenizer(folder: Path) -> TextTokenizer | None:
    try:
        return TextTokenizer.from_folder(folder)
    except Exception as error:  # the library of tokenizers raises nothing more special
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {error}") from error


def _compare(wanted: dict[str, tuple[int, ...]], weights: Weights, optional: Iterable[str] = ()) -> None:
    found, free = weights.shapes, set(optional)
    problems = [f"missing {key} {list(wanted[key])}" for key in wanted.keys() - found.keys() - free]
    problems += [f"unexpected {key} {list(found[key])}" for key in found.keys() - wanted.keys()]
    problems += [
        f"{key} has shape {list(found[key])}, the configuration needs {list(wanted[key])}"
        for key in (wanted.keys() & found.keys()) - free
        if wanted[key] != found[key]
    ]
    problems += [f"{key} is of {dtype}, not of {', '.join(FLOATS)}" for key, dtype in weights.dtypes.items() if key in wanted and dtype not in FLOATS]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise CheckpointError(f"{weights.path}: {shown}" + (f" and {len(problems) - 5} more" if len(problems) > 5 else ""))
