"""The network's speed: `python -m bench.network`.

The yardstick is transformers' Qwen2 with the sizes of our understanding expert, on the same machine in the same run.
On a host both have the tiny profile's sizes. Where a GPU is at hand they are four layers of the 14B's shape in bfloat16, which
are also measured alone (`layer_slice.py`): there, the tiny sizes would time nothing but the starting of kernels.
"""

import torch

from bench import layer_slice
from bench.rows import Row, rates, report
from model.config import ModelConfig
from model.packing import TextItem, pack
from model.tokenizer import TextTokenizer
from model.unimedvl import UniMedVL

QWEN2 = "transformers Qwen2ForCausalLM"


def measure(quick: bool) -> list[Row]:
    """All rows."""
    torch.manual_seed(0)
    gpu = torch.cuda.is_available()
    model = layer_slice.network(layer_slice.SLICE, "cuda") if gpu else network()
    peer = qwen2(model.config).to(model.device, model.language_model.lm_head.weight.dtype)
    repeats, packs = 1 if quick else 15, 4 if gpu else 1
    equal = [48] * 4 if quick else [128] * 16
    # Lengths of questions, captions and reports: many short, few long.
    mixed = [16, 40] if quick else [24, 30, 33, 36, 40, 44, 48, 52, 60, 70, 84, 100, 130, 180, 260, 420]
    rows = [
        training("packed training step, equal lengths", model, peer, equal * packs, repeats, goal=1.0),
        training("packed training step, realistic lengths", model, peer, mixed * packs, repeats, goal=1.5),
        decoding(model, peer, batch=2 if quick else 16, prompt=32, new=4 if quick else 64, repeats=repeats),
        drawing(model, batch=2 if quick else 8, steps=4 if quick else 24, repeats=1 if quick else 3),
    ]
    return rows + (layer_slice.measure(model, quick) if gpu else [])


def network() -> UniMedVL:
    """Random weights at the `tiny` sizes."""
    model = UniMedVL(ModelConfig())
    model.initialise(torch.Generator().manual_seed(0))
    model.tokenizer = TextTokenizer.train(["CT image of the abdomen."], model.config.llm.vocab_size)
    return model


def qwen2(config: ModelConfig):
    """Qwen2 of the same dense size: one expert's layers, embeddings and head."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    llm = config.llm
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    config = Qwen2Config(**{name: getattr(llm, name) for name in names}, tie_word_embeddings=False, attn_implementation="sdpa")
    return Qwen2ForCausalLM(config)


def training(name: str, model: UniMedVL, peer, lengths: list[int], repeats: int, goal: float) -> Row:
    """Forward and backward over texts of these lengths: real tokens a second."""
    texts = [torch.randint(4, model.config.llm.vocab_size, (n - 2,)).tolist() for n in lengths]
    batch = pack([[TextItem(ids, loss=True)] for ids in texts], model.config).to(model.device)
    ids, mask, labels = (x.to(model.device) for x in padded(texts, model.config))
    noise = torch.zeros(0, model.config.latent_dim, device=model.device)
    model.train(), peer.train()

    def ours() -> int:
        model(batch, noise).ce.mean().backward()
        model.zero_grad(set_to_none=True)
        return sum(lengths)

    def theirs() -> int:
        peer(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        peer.zero_grad(set_to_none=True)
        return sum(lengths)

    mine, others = rates(ours, theirs, repeats)
    return Row(name, mine, "tokens/s", QWEN2, others, goal)


def padded(texts: list[list[int]], config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same texts as a padded batch with its mask and labels."""
    special = config.special_tokens
    rows = [torch.tensor([special.bos_token_id, *ids, special.eos_token_id]) for ids in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=special.eos_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask, ids.masked_fill(mask == 0, -100)


def decoding(model: UniMedVL, peer, batch: int, prompt: int, new: int, repeats: int) -> Row:
    """Greedy decoding with a cache, prompt included: new tokens a second."""
    from model import generate

    prompts = torch.randint(4, model.config.llm.vocab_size, (batch, prompt - 2))
    contexts = [[TextItem(row.tolist())] for row in prompts]
    ids, mask, _ = (x.to(model.device) for x in padded(prompts.tolist(), model.config))
    model.eval(), peer.eval()

    def ours() -> int:
        for _ in generate.decode(model, generate.prefill(model, contexts, new), new, temperature=0.0, seed=0):
            pass
        return batch * new

    @torch.inference_mode()
    def theirs() -> int:
        peer.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
        return batch * new

    mine, others = rates(ours, theirs, repeats)
    return Row(f"greedy decoding, batch {batch}", mine, "tokens/s", f"{QWEN2}.generate", others, goal=1.2)


def drawing(model: UniMedVL, batch: int, steps: int, repeats: int) -> Row:
    """Guided 64-px drawings: one batch beside the same drawings one by one."""
    prompts = [["CT image of the abdomen."]] * batch
    model.eval()

    def together() -> int:
        model.draw_batch(prompts, seeds=range(batch), steps=steps, size=(64, 64))
        return batch

    def single() -> int:
        for seed in range(batch):
            model.draw("CT image of the abdomen.", seed=seed, steps=steps, size=(64, 64))
        return batch

    mine, others = rates(together, single, repeats)
    return Row(f"{steps}-step guided drawing, batch {batch}", mine, "images/s", "the same, one by one", others, goal=3.0)


if __name__ == "__main__":
    report(__doc__, measure)
