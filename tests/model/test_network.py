"""The network through its public face, on random weights."""

import hashlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import flex_attention

from model import UniMedVL
from model.attention import sample_mask
from model.config import PUBLISHED_EXTRAS, ModelConfig, SamplingConfig
from model.losses import TokenCounts, step_loss
from model.optimisation import set_trainable
from model.packing import TextItem, VAEItem, ViTItem, pack
from model.positions import grid_ids
from model.sparse_attention import block_mask
from model.testing import make_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder):
    return UniMedVL.from_pretrained(folder)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 64, 3), dtype=np.uint8))


def test_streamed_text_is_the_text(model, picture):
    parts = [picture, "Which imaging modality is this?"]
    chunks = list(model.stream_chat(parts, max_new_tokens=8))
    assert "".join(chunk.text for chunk in chunks) == model.chat(parts, max_new_tokens=8).text
    assert chunks[-1].finish_reason in ("stop", "length")


def test_answers_do_not_depend_on_their_batch(model, picture):
    asked = [[picture, "Is this a CT?"], ["A much longer question without any picture at all?"]]
    together = model.chat_batch(asked, max_new_tokens=6)
    alone = [model.chat(parts, max_new_tokens=6) for parts in asked]
    assert [a.text for a in together] == [a.text for a in alone]
    np.testing.assert_allclose(together[0].logprobs, alone[0].logprobs, atol=1e-4)


def test_sampled_answers_do_not_depend_on_their_batch(model, picture):
    asked = [["Is this a CT?"], [picture, "Is this a CT?"], "A much longer question without any picture at all?"]
    together = model.chat_batch(asked, max_new_tokens=8, temperature=1.0, seed=3)
    assert [a.text for a in together] == [model.chat(parts, max_new_tokens=8, temperature=1.0, seed=3).text for parts in asked]
    assert together[0].text != model.chat(asked[0], max_new_tokens=8, temperature=1.0, seed=4).text


def test_a_text_alone_is_one_part(model):
    assert model.chat("Is this a CT?", max_new_tokens=4) == model.chat(["Is this a CT?"], max_new_tokens=4)
    assert model.count_tokens("Is this a CT?") == model.count_tokens(["Is this a CT?"])
    drawn = model.draw_batch(["CT image", ["CT image"]], seeds=[1, 1], steps=3)
    assert np.array_equal(drawn[0], drawn[1])


def test_nothing_asked_is_nothing_answered(model):
    assert model.chat_batch([]) == model.draw_batch([]) == []
    assert model.embed([]).shape == (0, model.config.llm.hidden_size)


def test_an_answer_of_no_token_ends_at_once(model):
    answer, chunks = model.chat("CT", max_new_tokens=0), list(model.stream_chat("CT", max_new_tokens=0))
    assert (answer.text, answer.completion_tokens, answer.finish_reason) == ("", 0, "length")
    assert [(chunk.text, chunk.finish_reason) for chunk in chunks] == [("", "length")]


@pytest.mark.parametrize("options", [{"max_new_tokens": -1}, {"temperature": -1.0}, {"temperature": float("nan")}])
def test_an_answer_that_cannot_be_meant_is_refused(model, options):
    told = f"{next(iter(options))}=.* must be a finite number"
    with pytest.raises(ValueError, match=told):
        model.chat("CT", **options)
    with pytest.raises(ValueError, match=told):
        next(model.stream_chat("CT", **options))


@pytest.mark.parametrize("part", [np.zeros((8, 8, 3), np.uint8), b"bytes", None, ["Is this a CT?"]])
def test_what_is_neither_a_text_nor_a_picture_is_told(model, part):
    for ask in (model.chat, model.draw, model.count_tokens, lambda parts: list(model.stream_chat(parts))):
        with pytest.raises(TypeError, match=f"part 1 is of type {type(part).__name__}.*PIL"):
            ask(["Is this a CT?", part])


def test_without_a_tokenizer_words_are_refused(picture):
    network = UniMedVL(ModelConfig())
    for ask in (lambda: network.chat([picture]), lambda: network.draw("CT image"), lambda: network.count_tokens(["CT"])):
        with pytest.raises(ValueError, match="this network has no tokenizer"):
            ask()


def test_drawings_depend_on_their_own_seed_alone(model):
    both = model.draw_batch([["CT image"], ["MRI image"]], seeds=[5, 7], steps=4)
    alone = model.draw_batch([["MRI image"]], seeds=[7], steps=4)[0]
    assert both[1].size == (64, 64)
    assert np.abs(np.asarray(both[1]).astype(int) - np.asarray(alone)).max() <= 1


def test_drawings_and_edits_of_any_size_share_a_call(model, picture):
    """Each as if it were alone: its own guidance, and the size of its own first image."""
    asked = [["CT image"], [picture, "Brighter."], ["MRI image"], [picture.rotate(90, expand=True), "Brighter."]]
    together = model.draw_batch(asked, seeds=np.array([5, 6, 7, 8]), steps=4)
    assert [drawn.size for drawn in together] == [(64, 64), (48, 64), (64, 64), (64, 48)]
    for drawn, parts, seed in zip(together, asked, (5, 6, 7, 8)):
        assert np.abs(np.asarray(drawn).astype(int) - model.draw(parts, seed=seed, steps=4)).max() <= 1


@pytest.mark.parametrize(
    "options, told",
    [
        ({"seeds": [1]}, "1 seeds for 2 conversations"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 conversations"),
        ({"size": (15, 64)}, "size 15x64: a side must have at least 16 px"),
        ({"size": (64, -16)}, "size 64x-16: a side"),
        ({"size": (64, 160)}, "exceeds the position table"),
        ({"steps": 1}, "steps=1: the shortest schedule has 2"),
        ({"steps": -3}, "steps=-3"),
        ({"guidance": float("nan")}, "guidance=nan is no finite number"),
        ({"image_guidance": float("inf")}, "image_guidance=inf is no finite number"),
    ],
)
def test_a_drawing_that_cannot_be_meant_is_refused(model, options, told):
    with pytest.raises(ValueError, match=told):
        model.draw_batch([["CT image"], ["MRI image"]], **options)


def test_the_published_network_draws_with_the_guidance_of_its_reference(folder):
    """Scales of 4 and 1.5, the second of an image that is not there: 1 + 1.5 * (4 - 1) of the text, as the reference's demo has it."""
    artist = UniMedVL.from_pretrained(folder)
    with torch.no_grad():
        artist.llm2vae.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for scale, sampling in ((5.5, SamplingConfig()), (4.0, SamplingConfig()), (None, SamplingConfig(**PUBLISHED_EXTRAS["sampling"]))):
        artist.config = artist.config.model_copy(update={"sampling": sampling})
        drawn[scale] = np.asarray(artist.draw("CT image of the abdomen.", steps=6, guidance=scale)).astype(int)
    assert np.abs(drawn[None] - drawn[5.5]).max() <= 1 < np.abs(drawn[None] - drawn[4.0]).max()


def test_what_drawing_keeps_can_be_trained_with(model):
    grid_ids.cache_clear()
    model.draw("CT image", steps=2)
    assert not grid_ids(4, 4, model.config.max_latent_size).is_inference()


def test_text_that_spells_a_special_token_stays_text(model):
    ids = model.tokenizer.encode("<|im_end|>")
    assert model.config.special_tokens.eos_token_id not in ids
    assert model.tokenizer.decode(ids) == "<|im_end|>"


def test_nobody_sees_a_noised_image_but_itself():
    config = ModelConfig()
    latent = torch.zeros(config.vae.z_channels, 8, 8)
    packed = pack([[TextItem([5, 6]), VAEItem(latent, draw=0.3), TextItem([7], loss=True)]], config)
    mask = sample_mask(packed.sample_lens, packed.split_lens, packed.attn_modes)[0]
    text, image = slice(0, 4), slice(4, 4 + 18)
    assert mask[image, image].all() and mask[image, text].all()
    assert not mask[22:, image].any() and not mask[text, image].any()


def test_a_later_text_reuses_the_rotary_id_of_a_noised_image_but_not_of_a_clean_one():
    config = ModelConfig()
    latent = torch.zeros(config.vae.z_channels, 2, 2)
    noised = pack([[VAEItem(latent, draw=0.0), TextItem([5])]], config)
    clean = pack([[VAEItem(latent), TextItem([5])]], config)
    assert noised.position_ids[-3:].tolist() == [0, 1, 2]
    assert clean.position_ids[-3:].tolist() == [1, 2, 3]


def test_a_pack_without_images_or_targets_has_zero_losses(model):
    packed = pack([[TextItem([5, 6, 7])]], model.config)
    losses = model(packed, torch.zeros(0, model.config.latent_dim))
    assert losses.ce.sum() == 0 and losses.mse.sum() == 0


def test_a_pack_that_meets_nothing_which_learns_adds_nothing(folder):
    learner = UniMedVL.from_pretrained(folder).train()
    parameters = set_trainable(learner, ("vit", "connector"))
    text = pack([[TextItem([5, 6, 7], loss=True)]], learner.config)
    picture = pack([[ViTItem(torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))), TextItem([5, 6], loss=True)]], learner.config)
    gradients = []
    for packs in ([picture], [text, picture, text]):
        learner.zero_grad()
        for each in packs:
            loss, ce, _ = step_loss(learner(each, torch.zeros_like(each.latents)), TokenCounts(ce=10), 0.25, 1.0)
            loss.backward()
        gradients.append([p.grad.clone() for p in parameters.values()])
    assert loss.item() == pytest.approx(0.25 * ce) and ce > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_image_larger_than_the_position_table_is_refused():
    config = ModelConfig()
    with pytest.raises(ValueError, match="exceeds the position table"):
        pack([[ViTItem(torch.zeros(3, 14 * 9, 14 * 9))]], config)


def test_the_random_start_is_pinned(tmp_path):
    first, second = (hashlib.sha256((make_tiny(tmp_path / name, seed=4) / "ema.safetensors").read_bytes()).hexdigest() for name in "ab")
    assert first == second


def test_pairs_of_blocks_told_from_their_bounds_miss_nothing():
    """Beside a mask of every pair of tokens: no block that is needed is left out, none taken as whole that is not."""
    config, rng = ModelConfig(), torch.Generator().manual_seed(3)
    latent, image = torch.zeros(config.vae.z_channels, 16, 16), torch.zeros(3, 98, 112)
    samples = [[TextItem([5] * n), ViTItem(image), VAEItem(latent), TextItem([6] * n, loss=True), VAEItem(latent, draw=0.1)] for n in torch.randint(1, 300, (5,), generator=rng).tolist()]
    packed = pack([*samples, [TextItem([5] * 700)]], config)
    rule = packed.sample_lens, packed.split_lens, packed.attn_modes
    dense = torch.block_diag(*(mask[:n, :n] for n, mask in zip(packed.sample_lens, sample_mask(*rule)))).bool()
    side = -(-packed.length // 128) * 128
    exact = torch.zeros(side, side, dtype=torch.bool)
    exact[: packed.length, : packed.length] = dense
    tiles = exact.unflatten(1, (-1, 128)).unflatten(0, (-1, 128)).transpose(1, 2)
    mask = block_mask(*rule, "cpu")
    looked_at = mask.to_dense()[0, 0].bool()
    assert not (tiles.any(dim=(2, 3)) & ~looked_at).any()
    whole = torch.zeros_like(looked_at)
    for row, (count, blocks) in enumerate(zip(mask.full_kv_num_blocks[0, 0], mask.full_kv_indices[0, 0])):
        whole[row, blocks[:count].long()] = True
    assert whole.any() and tiles.all(dim=(2, 3))[whole].all()
    # Not many are looked at in vain, though the pieces here are shorter than blocks.
    assert looked_at.sum() < 1.5 * tiles.any(dim=(2, 3)).sum()


def test_block_sparse_attention_gives_the_same_losses_and_gradients(folder, monkeypatch):
    """Flex attention refuses gradients on a CPU, whose fused kernel has none; as plain operations it has them."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    model = UniMedVL.from_pretrained(folder).requires_grad_(True)
    rng = torch.Generator().manual_seed(0)
    words, image, latent = [5, 6, 7, 8], torch.rand((3, 70, 70), generator=rng), torch.randn((4, 8, 8), generator=rng)
    samples = [[ViTItem(image), TextItem(words), TextItem(words[:2], loss=True)], [TextItem(words), VAEItem(latent, draw=0.3)], [TextItem(words * 39, loss=True)]]
    packed = pack(samples, model.config)
    noise = torch.randn(packed.latents.shape, generator=rng)

    def trained() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        losses = model(packed, noise)
        gradients = torch.autograd.grad(losses.ce.mean() + losses.mse.mean(), list(model.parameters()), allow_unused=True, materialize_grads=True)
        return [losses.ce, losses.mse], list(gradients)

    dense = trained()
    monkeypatch.setattr(UniMedVL, "sparse_attention", True)
    for first, second in zip(dense, trained()):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert sum(gradient.any() for gradient in dense[1]) > 100


@pytest.mark.skipif(not shutil.which("g++"), reason="the fused kernel is compiled by g++")
@torch.no_grad()
def test_the_fused_kernel_skips_blocks_and_gives_the_same_numbers():
    rng = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 170, (20,), generator=rng).tolist()
    rule = [sum(lengths[i : i + 4]) for i in range(0, 20, 4)], lengths, ["causal", "full", "noise", "causal"] * 5
    q, k, v = (torch.randn((1, heads, sum(lengths), 32), generator=rng) for heads in (4, 2, 2))
    mask = block_mask(*rule, "cpu")
    assert mask.sparsity() > 20
    plain, fused = (kernel(q, k, v, block_mask=mask, enable_gqa=True) for kernel in (flex_attention.flex_attention, torch.compile(flex_attention.flex_attention, dynamic=True)))
    torch.testing.assert_close(plain, fused, rtol=1e-4, atol=1e-5)
