"""The checkpoint and the thirteen cases, one function each: what our network computes beside what the reference computed.

Tolerances are the fixture's own (its README).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from model import denoise, generate
from model.attention import sample_mask
from model.config import ResizeRule
from model.curriculum import PARTS, StageParams
from model.losses import count, step_loss
from model.optimisation import EMA, make_optimiser, set_trainable
from model.packing import CLEAN, Item, PackedSequence, TextItem, VAEItem, ViTItem, length_weight, pack
from model.packing_loop import Group, PackingLimits, PackingLoop
from model.positions import grid_ids, interpolated_grid_ids, timestep_sinusoid
from model.preprocess import resize, target_size, to_image, to_tensor
from model.vit import patchify
from tests.golden.fixture import Golden, Row, close, close_relative, difference, exact, some, worst

Rows = Iterator[Row]
CHECKS: dict[str, Callable[[Golden], Rows]] = {}
RENORMS = ("global", "channel", "text_channel")


def check(case: str):
    """Register the check of a case."""

    def register(function: Callable[[Golden], Rows]):
        CHECKS[case] = function
        return function

    return register


def packed_batch(golden: Golden) -> PackedSequence:
    """The batch of case 01, packed by us; its latents are the reference's own encodings."""
    given, pictures = golden.json("01_packer_inputs"), golden.tensors("01_packer_inputs")
    shapes = golden.json("01_packer_outputs")["patchified_vae_latent_shapes"]
    patch = golden.model.config.latent_patch_size
    encoded = (latent[:, : rows * patch, : columns * patch] for latent, (rows, columns) in zip(golden.tensors("06_train")["padded_latent"], shapes))
    draws = iter(given["raw_timesteps_for_each_loss_image"])
    return pack([_items(sample, pictures, encoded, draws) for sample in given["samples"]], golden.model.config)


def _items(sample: dict, pictures: dict[str, Tensor], encoded: Iterator[Tensor], draws: Iterator[float]) -> list[Item]:
    texts, images, items = iter(sample["texts"]), iter(sample["images"]), []
    for planned in sample["plan"]:
        if planned["type"] == "text":
            items.append(TextItem(next(texts), loss=bool(planned["loss"])))
        elif planned["type"] == "vit_image":
            items.append(ViTItem(pictures["vit_image_{1}".format(*next(images))]))
        else:
            next(images)
            items.append(VAEItem(next(encoded), draw=float(next(draws)) if planned["loss"] else CLEAN))
    return items


@check("checkpoint")
def checkpoint(golden: Golden) -> Rows:
    """Keys and shapes as listed beside the weights, and the same tensors when saved."""
    with TemporaryDirectory() as folder:
        golden.load().save_pretrained(folder)
        for part in ("ema", "ae"):
            saved, wanted = load_file(f"{folder}/{part}.safetensors"), load_file(golden.folder / "checkpoint" / f"{part}.safetensors")
            listed = json.loads((golden.folder / "checkpoint" / f"{part}_keys.json").read_text())
            yield exact("checkpoint", f"{part}: keys and shapes", {key: list(tensor.shape) for key, tensor in saved.items()}, listed)
            yield exact("checkpoint", f"{part}: saved again", [key for key in wanted if not torch.equal(wanted[key], saved[key])], [])


@check("01_packer")
def packer(golden: Golden) -> Rows:
    ours, wanted, lists = packed_batch(golden), golden.tensors("01_packer_outputs"), golden.json("01_packer_outputs")
    names = {
        "text_ids": "packed_text_ids",
        "text_indexes": "packed_text_indexes",
        "position_ids": "packed_position_ids",
        "vit_patches": "packed_vit_tokens",
        "vit_indexes": "packed_vit_token_indexes",
        "vit_position_ids": "packed_vit_position_ids",
        "latent_indexes": "packed_vae_token_indexes",
        "latent_position_ids": "packed_latent_position_ids",
        "timestep_draws": "packed_timesteps",
        "ce_indexes": "ce_loss_indexes",
        "ce_labels": "packed_label_ids",
        "ce_weights": "ce_loss_weights",
    }
    for mine, theirs in names.items():
        yield exact("01_packer", mine, getattr(ours, mine), wanted[theirs])
    yield exact("01_packer", "vit_lengths", torch.tensor(ours.vit_lengths), wanted["vit_token_seqlens"].long())
    yield exact("01_packer", "mse indexes", ours.latent_indexes[ours.target_rows], wanted["mse_loss_indexes"])
    for name in ("sample_lens", "split_lens", "attn_modes"):
        yield exact("01_packer", name, getattr(ours, name), lists[name])
    yield exact("01_packer", "sequence_length", ours.length, lists["sequence_length"])


@check("02_attention_mask")
def attention_mask(golden: Golden) -> Rows:
    given, dense = golden.json("02_attention_mask"), golden.tensors("02_attention_mask")["dense"].bool()
    masks = zip(given["sample_lens"], sample_mask(given["sample_lens"], given["split_lens"], given["attn_modes"]))
    ours = torch.block_diag(*(mask[:length, :length] for length, mask in masks)).bool()
    yield exact("02_attention_mask", "dense mask", ours, dense)


@check("03_vae")
@torch.no_grad()
def vae(golden: Golden) -> Rows:
    case, model = golden.tensors("03_vae"), golden.model.vae
    mean, logvar = model.posterior(case["images"])
    yield close("03_vae", "mean", mean, case["mean"], 2e-5)
    yield close("03_vae", "logvar", logvar, case["logvar"], 2e-5)
    yield close("03_vae", "latent", model.encode(case["images"], case["eps"]), case["latent"], 2e-5)
    yield close("03_vae", "decoded", model.decode(case["latent"]), case["decoded"], 2e-5)


@check("04_vit")
@torch.no_grad()
def vit(golden: Golden) -> Rows:
    case, model = golden.tensors("04_vit"), golden.model
    ids = case["packed_vit_position_ids"]
    features = model.vit_model(case["packed_vit_tokens"], ids, case["vit_token_seqlens"].tolist())
    connected = model.connector(features)
    yield close("04_vit", "features", features, case["features"], 2e-5)
    yield close("04_vit", "connector", connected, case["connector"], 2e-5)
    yield close("04_vit", "decoder input", connected + model.vit_pos_embed(ids), case["llm_input"], 2e-5)


@check("05_parts")
@torch.no_grad()
def parts(golden: Golden) -> Rows:
    case, given, model = golden.tensors("05_parts"), golden.json("05_parts"), golden.model
    patch, side = given["vit_patch_size"], given["max_num_patches_per_side"]
    yield close("05_parts", "sinusoid", timestep_sinusoid(case["t"], case["sinusoid_256"].shape[1]), case["sinusoid_256"], 5e-6)
    yield close("05_parts", "time embedding", model.time_embedder(case["t"]), case["time_embedding"], 5e-6)
    for name in ("latent_pos_embed", "vit_pos_embed"):
        yield close("05_parts", name, getattr(model, name).pos_embed, case[name], 5e-6)
    yield close("05_parts", "patchify", patchify(case["patchify_in"], patch), case["patchify_out"], 5e-6)
    for kind in ("extrapolate", "interpolate"):
        for name in some(f"{kind}d position ids", [name for name in case if name.startswith(f"{kind}_")]):
            rows, columns = (int(pixels) // patch for pixels in name.removeprefix(f"{kind}_").split("x"))
            ids = grid_ids if kind == "extrapolate" else interpolated_grid_ids
            yield exact("05_parts", name, ids(rows, columns, side), case[name])
    for kind in ("timesteps", "dts"):
        for name in some(f"schedules' {kind}", [name for name in case if name.startswith(f"{kind}_")]):
            steps, shift = name.removeprefix(f"{kind}_").split("_")
            times = denoise.schedule(int(steps[1:]), float(shift[1:]))
            yield close("05_parts", name, times[:-1] if kind == "timesteps" else times[:-1] - times[1:], case[name], 5e-6)
    for length, weight in some("length weights", list(given["len2weight"].items())):
        yield close_relative("05_parts", f"length weight {length}", length_weight(int(length)), weight, 5e-6)


@check("06_train")
def train(golden: Golden) -> Rows:
    case, told, batch = golden.tensors("06_train"), golden.json("06_train"), packed_batch(golden)
    model = golden.load().train()
    parameters = set_trainable(model, PARTS)
    t = model.shifted_timesteps(batch.timestep_draws)
    yield close("06_train", "clean latents", batch.latents, case["packed_latent_clean"], 0)
    yield close("06_train", "shifted t", t, case["shifted_timesteps"], 1e-6)
    noisy = (1 - t[:, None]) * batch.latents + t[:, None] * case["noise"]
    hidden, place = model.hidden_states(batch, noisy, t)
    yield close("06_train", "last hidden state", hidden[place], case["last_hidden_state"], 2e-5)
    losses = model(batch, case["noise"])
    yield close("06_train", "ce per token", losses.ce, case["ce"], 3e-5)
    yield close("06_train", "mse per element", losses.mse, case["mse"], 1e-4)
    totals = count(batch)
    total, ce, mse = step_loss(losses, totals, ce_weight=0.25, mse_weight=1.0)
    weights = batch.ce_weights
    means = {
        "ce_mean": ce,
        "mse_mean": mse,
        "ce_reweighted": ((losses.ce * weights).sum() / weights.sum()).item(),
        "total_ce0p25_mse1": total.item(),
        "total_ce1_mse1": step_loss(losses, totals, 1.0, 1.0)[0].item(),
    }
    for name, value in means.items():
        yield close_relative("06_train", name, value, told[name], 1e-5)
    yield exact("06_train", "token counts", [totals.ce, totals.mse], [told["num_ce_tokens"], told["num_mse_tokens"]])
    total.backward()
    gradients = golden.tensors("06_train_grads")
    left_out = [name for name, p in parameters.items() if name not in gradients and p.grad is not None and p.grad.any()]
    yield from _gradients("06_train_grads", parameters, gradients, left_out)
    yield from _one_step(golden, model, parameters, batch, case["noise"], told)


def _gradients(case: str, parameters: dict, wanted: dict[str, Tensor], left_out: Sequence[str] = ()) -> Rows:
    """Every gradient: largest absolute error, and L2 error relative to the gradient's own norm. None may be `left_out`."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    yield exact(case, "tensors compared", sorted({*left_out, *(wanted.keys() - found.keys())}), [])
    compared = {name: (found[name], gradient) for name, gradient in wanted.items() if name in found}
    yield worst(case, "largest error", {name: difference(*pair) for name, pair in compared.items()}, 2e-5)
    # What is not a number is no small gradient.
    relative = {name: ((ours - theirs).norm() / theirs.norm()).item() for name, (ours, theirs) in compared.items() if not theirs.norm() <= 1e-4}
    yield worst(case, "largest L2 error", relative, 1e-4, relative=True)


def _one_step(golden: Golden, model, parameters: dict, batch: PackedSequence, noise: Tensor, told: dict) -> Rows:
    """Clip, one AdamW step, one update of the average; then the losses again."""
    case, recipe = golden.tensors("06_train_after_step"), told["optimizer"]
    stage = StageParams(name="golden", steps=1, mixture={"text": 1}, learning_rate=recipe["lr"])
    optimiser = make_optimiser(parameters, stage)
    optimiser.param_groups[0].update(betas=tuple(recipe["betas"]), eps=recipe["eps"], weight_decay=recipe["weight_decay"])
    average = EMA(parameters, recipe["ema_decay"], warm_up=False)
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), recipe["max_grad_norm"])
    yield close_relative("06_train_after_step", "gradient norm", norm.item(), told["grad_norm_before_clip"], 1e-5)
    clipped = {name: p.grad.clone() for name, p in parameters.items()}
    optimiser.step()
    average.update(0)
    errors, averages = {}, [name for name in case if name.startswith("ema.")]
    for name in some("tensors after the step", sorted(case.keys() - averages)) + some("averages", averages):
        key = name.removeprefix("ema.")
        found = average.average[key] if name.startswith("ema.") else parameters[key]
        # AdamW's first step is lr * sign(gradient): where the gradient is rounding noise, so is the step.
        told_apart = clipped[key].abs() > 1e-6
        errors[name] = difference(found * told_apart, case[name] * told_apart)
    yield worst("06_train_after_step", f"largest error of {len(errors)} tensors", errors, 1e-5)
    with torch.no_grad():
        again = model(batch, noise)
    yield close_relative("06_train_after_step", "ce after the step", again.ce.mean().item(), told["after_one_step"]["ce_mean"], 1e-4)
    yield close_relative("06_train_after_step", "mse after the step", again.mse.mean().item(), told["after_one_step"]["mse_mean"], 1e-4)


@check("06_train_grads_freeze_und")
def freeze_und(golden: Golden) -> Rows:
    case, told, batch = "06_train_grads_freeze_und", golden.json("06_train_grads_freeze_und"), packed_batch(golden)
    model = golden.load().train()
    parameters = set_trainable(model, PARTS)
    losses = model(batch, golden.tensors("06_train")["noise"], freeze_und=True)
    total, _, _ = step_loss(losses, count(batch), ce_weight=0.25, mse_weight=1.0)
    yield close_relative(case, "total", total.item(), told["total"], 1e-5)
    total.backward()
    yield from _gradients(case, parameters, golden.tensors(case))
    still = {name for name, p in parameters.items() if p.grad is None or not p.grad.any()}
    yield exact(case, "gradients exactly zero", sorted(still), sorted(told["params_with_zero_grad"] + told["params_without_grad"]))


@check("07_understanding")
@torch.no_grad()
def understanding(golden: Golden) -> Rows:
    name, case, told, model = "07_understanding", golden.tensors("07_understanding"), golden.json("07_understanding"), golden.model
    image, prompt = ViTItem(case["image"]), TextItem(case["prompt_ids"].tolist())
    packed = pack([[image, prompt]], model.config)
    context = generate.prefill(model, [[image, prompt]], told["max_length"])
    cache, n_image = context.cache, len(case["prefill_vit_hidden"])
    hidden = _hidden(model, packed)
    yield exact(name, "cache length", context.lengths, torch.tensor(told["kv_lens"]))
    yield exact(name, "rotary counter", context.ropes, torch.tensor(told["rope"]))
    yield exact(name, "image position ids", packed.position_ids[:n_image], case["vit_packed_position_ids"])
    yield exact(name, "text position ids", packed.position_ids[n_image:], case["text_position_ids"])
    yield close(name, "image hidden states", hidden[:n_image], case["prefill_vit_hidden"], 5e-5)
    yield close(name, "text hidden states", hidden[n_image:], case["prefill_text_hidden"], 5e-5)
    yield close(name, "prompt logits", model.language_model.lm_head(hidden[n_image:]), case["prefill_text_logits"], 5e-5)
    for kind, caches in (("key", cache.keys), ("value", cache.values)):
        for key in some(f"cached {kind}s", [key for key in case if key.startswith((f"kv_{kind}_layer", f"{kind}_layer"))]):
            stored = caches[int(key.split("layer")[1].split("_")[0])]
            yield close(name, key, stored[0, :, : len(case[key])].transpose(0, 1), case[key], 5e-5)
    tokens, logits = _greedy(model, context, told["max_length"])
    yield close(name, "logits of every step", logits[:, 0], case["greedy_logits"], 5e-5)
    yield exact(name, "greedy tokens", tokens[: told["max_length"], 0], case["greedy_tokens"])
    stop = told["stop_token_for_greedy_tokens_stopped"]
    stopped = tokens[:, 0].tolist()
    stopped = stopped[: stopped.index(stop, 1)] if stop in stopped[1:] else stopped
    yield exact(name, "greedy tokens up to the stop token", stopped[: told["max_length"]], case["greedy_tokens_stopped"].tolist())


@check("08_batched_text")
@torch.no_grad()
def batched_text(golden: Golden) -> Rows:
    case, model = golden.tensors("08_batched_text"), golden.model
    numbers = sorted(int(key.removeprefix("prompt")) for key in case if key.startswith("prompt"))
    prompts = [[TextItem(case[f"prompt{number}"].tolist())] for number in numbers]
    logits = model.language_model.lm_head(_hidden(model, pack(prompts, model.config)))
    yield close("08_batched_text", "prefill logits", logits, case["prefill_logits"], 5e-5)
    steps = len(case["tokens"])
    tokens, _ = _greedy(model, generate.prefill(model, prompts, steps), steps)
    yield exact("08_batched_text", "greedy tokens", tokens[:steps], case["tokens"])


def _hidden(model, packed: PackedSequence) -> Tensor:
    """Last hidden states of clean context, in sequence order."""
    hidden, place = model.hidden_states(packed, packed.latents, model.shifted_timesteps(packed.timestep_draws))
    return hidden[place]


def _greedy(model, context: generate.Context, steps: int) -> tuple[Tensor, Tensor]:
    """Tokens [steps + 1, rows] from bos on, and the logits [steps, rows, vocab]."""
    tokens, logits = [torch.full((context.rows,), model.config.special_tokens.bos_token_id)], []
    for _ in range(steps):
        found, context = generate.step(model, context, tokens[-1])
        logits.append(found)
        tokens.append(found.argmax(dim=-1))
    return torch.stack(tokens), torch.stack(logits)


def _grid(golden: Golden, told: dict) -> tuple[int, int]:
    return tuple(side // golden.model.config.latent_stride for side in told["image_shape"])


@check("09_generation_step")
@torch.no_grad()
def generation_step(golden: Golden) -> Rows:
    name, case, told, model = "09_generation_step", golden.tensors("09_generation_step"), golden.json("09_generation_step"), golden.model
    grid, prompt = _grid(golden, told), [TextItem(case["prompt_ids"].tolist())]
    context = generate.prefill(model, [prompt, [], prompt], grid[0] * grid[1] + 2)
    query = denoise.QueryBlock(model, context, grid)
    for t in some("velocities", sorted({key.rpartition("_t")[2] for key in case if key.startswith(("cond_", "cfg_"))})):
        velocities = query.velocity(case["x_t"][None], torch.tensor(float(t)), 3)
        yield close(name, f"cond_t{t}", velocities[0, 0], case[f"cond_t{t}"], 5e-5)
        for scales, renorm in product(("text_img", "text_only"), RENORMS):
            key, with_image = f"cfg_{scales}_{renorm}_t{t}", scales == "text_img"
            guidance = denoise.Guidance(2, 1.0, told["cfg_text_scale"], told["cfg_img_scale"] if with_image else 1.0, (0, 1), renorm, told[f"cfg_renorm_min_{scales}"])
            combined = denoise.combine(velocities if with_image else velocities[:2], guidance)
            yield close(name, key, combined[0], case[key], 5e-5)


def _guidance(told: dict, **scales: float) -> denoise.Guidance:
    scales = scales.get("text", told["cfg_text_scale"]), scales.get("image", told["cfg_img_scale"])
    return denoise.Guidance(told["num_timesteps"], told["timestep_shift"], *scales, tuple(told["cfg_interval"]), told["cfg_renorm_type"], told["cfg_renorm_min"])


def _whole_loop(name: str, golden: Golden, case: dict[str, Tensor], told: dict, context: list[Item]) -> Rows:
    model, grid = golden.model, _grid(golden, told)
    *before, final = denoise.trajectory(model, [context], case["init_noise"][None], grid, _guidance(told))
    yield close(name, "x before every move", torch.cat(before), case["trajectory"], 1e-4)
    yield close(name, "final tokens", final[0], case["final_latent_tokens"], 1e-4)
    latent = denoise.to_latent(model, final, grid)
    yield close(name, "VAE latent", latent, case["vae_latent"], 1e-4)
    decoded = model.vae.decode(latent)
    yield close(name, "decoded", decoded, case["decoded"], 1e-4)
    pixels = torch.from_numpy(np.array(to_image(decoded[0])))
    yield close(name, "pixels", pixels, case["pixels_uint8"], 1)


@check("10_denoise_t2i")
@torch.no_grad()
def denoise_t2i(golden: Golden) -> Rows:
    name, case, told = "10_denoise_t2i", golden.tensors("10_denoise_t2i"), golden.json("10_denoise_t2i")
    context = [TextItem(case["prompt_ids"].tolist())]
    yield from _whole_loop(name, golden, case, told, context)
    grid = _grid(golden, told)
    for variant in sorted({*told["variants"], *(key.partition(".")[0] for key in case if "." in key)}):
        key = f"{variant}.final_latent_tokens"
        scales = {"text": 1.0, "image": 1.0} if variant == "nocfg" else {"image": float(variant.removeprefix("img").replace("p", "."))}
        final = denoise.sample(golden.model, [context], case["init_noise"][None], grid, _guidance(told, **scales))
        yield close(name, f"{variant} final tokens", final[0], case[key], 1e-4)


@check("11_denoise_edit")
@torch.no_grad()
def denoise_edit(golden: Golden) -> Rows:
    name, case, told, model = "11_denoise_edit", golden.tensors("11_denoise_edit"), golden.json("11_denoise_edit"), golden.model
    latent = model.vae.encode(case["vae_image"][None], case["vae_eps"])
    image, prompt = [VAEItem(latent[0]), ViTItem(case["vit_image"])], [TextItem(case["prompt_ids"].tolist())]
    packed = pack([image + prompt, image, prompt], model.config)
    for row, branch in enumerate(("main", "cfg_text", "cfg_img")):
        yield exact(name, f"{branch} length and rotary counter", [packed.sample_lens[row], packed.rope_ends[row]], [told["kv_lens"][branch][0], told["rope"][branch][0]])
    first = case["prefill_vae_hidden"]
    yield close(name, "VAE context hidden states", _hidden(model, pack([image[:1]], model.config)), first, 1e-4)
    yield from _whole_loop(name, golden, case, told, image + prompt)


@check("12_preprocess")
def preprocess(golden: Golden) -> Rows:
    told, case = golden.json("12_preprocess"), golden.tensors("12_preprocess")
    rules = {name: ResizeRule(**rule) for name, rule in told["configs"].items()}
    found = [target_size(row["width"], row["height"], rules[row["config"]], row["img_num"]) for row in some("resize decisions", told["table"])]
    yield exact("12_preprocess", f"{len(found)} resize decisions", found, [(row["out_width"], row["out_height"]) for row in told["table"]])
    image = Image.fromarray(case["image_uint8"].numpy())
    for name in some("transformed pictures", sorted(case.keys() - {"image_uint8"})):
        rule = ResizeRule(**dict(zip(("max_size", "min_size", "stride"), map(int, name.split("_")[1:]))))
        # Bicubic filters differ by two grey levels between Pillow releases.
        yield close("12_preprocess", name, to_tensor(resize(image, rule)), case[name], 2 / 255)


@check("13_packing_loop")
def packing_loop(golden: Golden) -> Rows:
    for number, case in enumerate(some("configurations", golden.json("13_packing_loop")["cases"])):
        draws = iter(case["uniform_draws"])
        limits = PackingLimits(case["expected_num_tokens"], case["max_num_tokens"], case["max_num_tokens_per_sample"], case["prefer_buffer_before"], case["max_buffer_size"])
        streams = [[(group, place, tokens + 2 * items) for place, (tokens, items) in enumerate(stream)] for group, stream in enumerate(case["streams"])]
        groups = [Group(iter(stream), weight, mandatory) for stream, weight, mandatory in zip(streams, case["weights"], case["is_mandatory"])]
        loop = PackingLoop(groups, cost=lambda sample: sample[2], draw=lambda: next(draws), limits=limits, reference=True)
        found = []
        for batch in islice(loop, len(some("batches", case["batches"]))):
            lens = [tokens for *_, tokens in batch]
            found.append({"samples": [[group, place] for group, place, _ in batch], "lens": lens, "total": sum(lens)})
        yield exact("13_packing_loop", f"configuration {number}: {len(found)} batches", found, case["batches"])
