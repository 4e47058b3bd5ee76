"""What training a profile takes: parameters, memory a GPU, and the time of a step, before any GPU is rented.

Parameters are counted on the real network built on the meta device. FLOPs follow the published count (BAGEL):
6 per parameter and token of the one expert a token meets, and attention over the whole of each sample.
"""

from dataclasses import asdict, dataclass
from math import ceil

import torch

from model.config import ModelConfig
from model.curriculum import PARTS, StageParams, TrainingParams
from model.optimisation import part_of

GIB = 1024**3


@dataclass(frozen=True)
class Hardware:
    """A GPU, how many of them, and the share of its peak that training reaches."""

    gpus: int
    memory_gb: float = 80.0  # decimal, as on the data sheet
    peak_tflops: float = 989.0  # dense bfloat16 of an H100
    mfu: float = 0.45


@dataclass(frozen=True)
class Plan:
    """Bytes are a GPU's; `step_seconds` is for one optimiser step of `tokens_per_gpu` on every GPU."""

    profile: str
    stage: str
    how: str
    gpus: int
    parameters: dict[str, int]
    trainable: int
    tokens_per_gpu: int
    memory: dict[str, int]
    fits: bool
    flops_per_step: float
    step_seconds: float
    stage_days: float

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())

    def to_json(self) -> dict:
        return asdict(self) | {"total_memory": self.total_memory}


def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters of every trainable group, of the fixed position tables and of the VAE."""
    from model.unimedvl import UniMedVL

    with torch.device("meta"):
        model = UniMedVL(config)
    counts = dict.fromkeys((*PARTS, "tables", "vae"), 0)
    for name, parameter in model.named_parameters():
        counts[part_of(name) or ("vae" if name.startswith("vae.") else "tables")] += parameter.numel()
    return counts


def plan(config: ModelConfig, stage: StageParams, training: TrainingParams, hardware: Hardware, tokens: int | None = None, samples: int = 4) -> Plan:
    """The plan of one stage, spread over all GPUs as `training` says. Every GPU takes as many packs a step, and one at least.

    Args:
        tokens: packed tokens of a pack; the stage's budget by default.
        samples: samples they belong to: attention grows with the square of a sample's length.
    """
    tokens, packs = tokens or stage.tokens_per_pack, ceil(training.streams / hardware.gpus)
    counts = count_parameters(config)
    trainable = sum(counts[part] for part in stage.trainable)
    sharded, width = training.parallel == "fsdp", 2 if training.precision == "bfloat16" else 4
    memory = state_bytes(counts, trainable, hardware.gpus if sharded else 1) | {
        "weights in use": gathered_bytes(config, counts, width) if sharded else cast_bytes(counts, width),
        "activations": activation_bytes(config, tokens, width, training.activation_checkpointing),
    }
    flops = hardware.gpus * packs * training_flops(config, tokens, [tokens // samples] * samples)
    seconds = flops / (hardware.gpus * hardware.peak_tflops * 1e12 * hardware.mfu)
    return Plan(
        profile=config.name,
        stage=stage.name,
        how=f"{'sharded' if sharded else 'whole on every GPU'}, {training.precision}, activations {'checkpointed' if training.activation_checkpointing else 'kept'}",
        gpus=hardware.gpus,
        parameters=counts,
        trainable=trainable,
        tokens_per_gpu=packs * tokens,
        memory=memory,
        fits=sum(memory.values()) <= hardware.memory_gb * 1e9 * 0.95,
        flops_per_step=flops,
        step_seconds=seconds,
        stage_days=seconds * stage.steps / 86400,
    )


def state_bytes(counts: dict[str, int], trainable: int, shards: int) -> dict[str, int]:
    """What lies still between steps: float32 masters, gradients, two moments and the average, shared out; the VAE whole."""
    held = sum(counts.values()) - counts["vae"]
    return {
        "weights": 4 * held // shards,
        "gradients": 4 * trainable // shards,
        "optimiser": 8 * trainable // shards,
        "EMA": 4 * trainable // shards,
        "VAE": 4 * counts["vae"],
    }


def gathered_bytes(config: ModelConfig, counts: dict[str, int], width: int = 2) -> int:
    """Weights and gradients, `width` bytes each, that are whole at the worst moment: the root's, and two decoder layers (one ahead)."""
    layer = layer_parameters(config)
    root = sum(counts.values()) - counts["vae"] - counts["vit"] - counts["connector"] - config.llm.num_hidden_layers * layer
    return width * (2 * root + 2 * layer + layer)


def cast_bytes(counts: dict[str, int], width: int) -> int:
    """What autocast keeps of weights that are whole already: a narrower copy of each."""
    return width * (sum(counts.values()) - counts["vae"]) if width < 4 else 0


def layer_parameters(config: ModelConfig) -> int:
    """Parameters of a decoder layer, both experts."""
    llm = config.llm
    queries, keys = llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim
    attention = llm.hidden_size * (2 * queries + 2 * keys) + queries + 2 * keys + 2 * llm.head_dim
    return 2 * (attention + 3 * llm.hidden_size * llm.intermediate_size + 2 * llm.hidden_size)


def activation_bytes(config: ModelConfig, tokens: int, width: int = 2, checkpointed: bool = True) -> int:
    """Activations, an element of `width` bytes: of every layer, or checkpointed its input alone and one layer computed again; and the logits.

    Half of the tokens are taken to carry a text loss; logits are also kept in float32, with their gradient.
    """
    llm = config.llm
    layers = tokens * layer_bytes(config, width)
    inputs = tokens * llm.hidden_size * width * llm.num_hidden_layers
    logits = tokens // 2 * llm.vocab_size * (width + 2 * 4)
    return (inputs + layers if checkpointed else layers * llm.num_hidden_layers) + logits


def layer_bytes(config: ModelConfig, width: int = 2) -> int:
    """Bytes a token leaves for the backward pass of one decoder layer.

    What norms and products read, queries, keys, values and result of attention, and in float32 one number
    for every norm and for the softmax of every head.
    """
    llm = config.llm
    hidden, mlp = llm.hidden_size, llm.intermediate_size
    heads, kv_heads = llm.num_attention_heads, llm.num_key_value_heads
    return width * (4 * hidden + 3 * (heads + kv_heads) * llm.head_dim + 4 * mlp) + 4 * (2 + 2 * heads + kv_heads)


def training_flops(config: ModelConfig, tokens: int, sample_lens: list[int]) -> float:
    """Forward and backward of one pack, without recomputation: the numerator of MFU."""
    llm = config.llm
    dense = layer_parameters(config) // 2 * llm.num_hidden_layers + 2 * llm.vocab_size * llm.hidden_size
    attention = 12 * llm.head_dim * llm.num_attention_heads * llm.num_hidden_layers * sum(n * n for n in sample_lens)
    return 6.0 * dense * tokens + attention
