"""Four layers of the 14B's shape on one GPU: how much of the card's peak a training step reaches, and drawings a second.

`bench.network` adds these rows where a GPU is at hand.
"""

from math import isnan

import torch

from bench.rows import Row, rates, seconds
from model.config import PUBLISHED_EXTRAS, ModelConfig
from model.packing import PackedSequence, TextItem, VAEItem, pack
from model.plan import layer_parameters
from model.tokenizer import TextTokenizer
from model.unimedvl import UniMedVL
from ray_jobs.meter import gpu_peak

# The layers are the 14B's; a small vocabulary, so that the slice's time is its layers'.
SLICE = ModelConfig(
    llm={"vocab_size": 4096, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 4, "num_attention_heads": 28, "num_key_value_heads": 4},
    vit={"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16, "patch_size": 14, "image_size": 980},
    **PUBLISHED_EXTRAS | {"name": "slice", "special_tokens": {}},
)


def measure(model: UniMedVL, quick: bool) -> list[Row]:
    """All rows of this page, of the slice on the GPU at hand."""
    card = torch.cuda.get_device_name()
    peak = gpu_peak(card)
    if isnan(peak):
        raise SystemExit(f"ray_jobs/meter.py knows no peak of {card}: add it to PEAKS from its data sheet")
    return [
        utilisation(model, mixed(SLICE, texts=7, words=2046, images=4, caption=510, side=128), peak, repeats=2 if quick else 10),
        drawing(model, batch=4, steps=4 if quick else 50, size=(512, 512), repeats=1 if quick else 3),
    ]


def network(config: ModelConfig, device: str) -> UniMedVL:
    """Random bfloat16 weights."""
    with torch.device("meta"):
        model = UniMedVL(config)
    model = model.to(torch.bfloat16).to_empty(device=device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.tokenizer = TextTokenizer.train(["CT image of the abdomen."], 300)
    return model


def mixed(config: ModelConfig, texts: int, words: int, images: int, caption: int, side: int) -> PackedSequence:
    """Texts, and images of `side` latents a side to be drawn from captions."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(4, 300, (n,), generator=generator).tolist()

    latent = torch.randn((config.vae.z_channels, side, side), generator=generator)
    return pack([[TextItem(ids(words), loss=True)] for _ in range(texts)] + [[TextItem(ids(caption)), VAEItem(latent, draw=0.0)] for _ in range(images)], config)


def flops(config: ModelConfig, batch: PackedSequence) -> float:
    """What a step must compute, nothing else: products of the one expert a token meets, the head where there is a loss, pairs that see each other."""
    llm, pairs, start = config.llm, 0, 0
    for length, mode in zip(batch.split_lens, batch.attn_modes):
        before = start - _sample_start(batch, start)
        pairs += length * before + (length * (length + 1) // 2 if mode == "causal" else length * length)
        start += length
    layers = layer_parameters(config) // 2 * llm.num_hidden_layers * batch.length
    attention = 2 * llm.head_dim * llm.num_attention_heads * llm.num_hidden_layers * pairs
    return 6.0 * (layers + llm.vocab_size * llm.hidden_size * len(batch.ce_labels) + attention)


def _sample_start(batch: PackedSequence, place: int) -> int:
    start = 0
    for length in batch.sample_lens:
        if place < start + length:
            break
        start += length
    return start


def utilisation(model: UniMedVL, batch: PackedSequence, peak: float, repeats: int) -> Row:
    """Forward and backward of one pack, as a share of the peak in FLOP/s."""
    work, batch = flops(model.config, batch), batch.to(model.device)
    noise = torch.randn(batch.latents.shape, device=model.device)
    model.train()

    def step() -> None:
        losses = model(batch, noise)
        (0.25 * losses.ce.mean() + losses.mse.mean()).backward()
        model.zero_grad(set_to_none=True)

    share = work / seconds(step, repeats) / peak
    layers = model.config.llm.num_hidden_layers
    return Row(f"MFU, {layers} layers, {batch.length:,} tokens, bf16", 100 * share, "%", "the card's peak", 100.0, goal=0.45)


def drawing(model: UniMedVL, batch: int, steps: int, size: tuple[int, int], repeats: int) -> Row:
    """Guided drawings through the slice, a batch beside one by one."""
    model.eval()

    def together() -> int:
        model.draw_batch([["CT image of the abdomen."]] * batch, seeds=range(batch), steps=steps, size=size)
        return batch

    def single() -> int:
        for seed in range(batch):
            model.draw_batch([["CT image of the abdomen."]], seeds=[seed], steps=steps, size=size)
        return batch

    mine, others = rates(together, single, repeats)
    return Row(f"{steps}-step drawing, {size[0]} px, batch {batch}, bf16", mine, "images/s", "the same, one by one", others, goal=1.0)
