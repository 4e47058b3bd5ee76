"""Write a golden folder at other sizes, by our own network: shows that a check reads every size from the files.

It proves nothing about the reference. What the checks compute with caches and batches is computed here without: each
token, and each velocity, from a whole sequence packed anew. A cache's own content is as it stands after one reading.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from model import UniMedVL, denoise, generate
from model.attention import sample_mask
from model.config import ModelConfig
from model.curriculum import PARTS
from model.losses import count, step_loss
from model.optimisation import set_trainable
from model.packing import Item, TextItem, VAEItem, ViTItem, length_weight, pack
from model.positions import grid_ids, interpolated_grid_ids, timestep_sinusoid
from model.preprocess import to_image
from model.vit import patchify

LR, DECAY = 2e-3, 0.9


@dataclass(frozen=True)
class Sizes:
    """What differs from the sample folder."""

    heads: int = 6
    kv_heads: int = 3
    head_dim: int = 12
    layers: int = 3
    vit_layers: int = 2
    vit_heads: int = 2
    patch: int = 8
    latent_patch: int = 1
    ch_mult: tuple[int, ...] = (1, 2)
    res_blocks: int = 2
    z: int = 6
    shift: float = 2.5
    steps: int = 5
    special: int = 40  # id of the first of the four special tokens
    seed: int = 7


class Writer:
    """Writes `checkpoint/` and `cases/`."""

    def __init__(self, folder: Path, sizes: Sizes = Sizes()):
        self.folder, self.sizes, self.rng = Path(folder), sizes, torch.Generator().manual_seed(sizes.seed)
        (self.folder / "checkpoint").mkdir(parents=True), (self.folder / "cases").mkdir()
        self.model = self._checkpoint()
        self.config = self.model.config
        self.stride = self.config.latent_stride

    def write(self) -> None:
        self._packer_and_training()
        self._parts()
        self._understanding()
        self._drawing()
        self._preprocess()
        self._packing_loop()

    def _save(self, name: str, tensors: dict[str, Tensor] | None = None, told: dict | None = None) -> None:
        if tensors is not None:
            save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, self.folder / "cases" / f"{name}.safetensors")
        if told is not None:
            (self.folder / "cases" / f"{name}.json").write_text(json.dumps(told))

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.rng)

    def _ids(self, n: int) -> list[int]:
        return torch.randint(0, self.sizes.special, (n,), generator=self.rng).tolist()

    def _checkpoint(self) -> UniMedVL:
        s, folder = self.sizes, self.folder / "checkpoint"
        special = dict(zip(("bos_token_id", "eos_token_id", "start_of_image", "end_of_image"), range(s.special, s.special + 4)))
        llm = {"hidden_size": s.heads * s.head_dim, "intermediate_size": 100, "num_hidden_layers": s.layers, "num_attention_heads": s.heads}
        # No rope_theta: the class's default is 10,000.
        llm |= {"num_key_value_heads": s.kv_heads, "vocab_size": s.special + 5, "rms_norm_eps": 1e-5, "model_type": "qwen2"}
        vit = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": s.vit_layers, "num_attention_heads": s.vit_heads, "patch_size": s.patch, "image_size": 9 * s.patch}
        bagel = {"latent_patch_size": s.latent_patch, "max_latent_size": 9, "vit_max_num_patch_per_side": 9, "timestep_shift": s.shift}
        ae = {"in_channels": 3, "ch": 32, "out_ch": 3, "ch_mult": s.ch_mult, "num_res_blocks": s.res_blocks, "z_channels": s.z, "scale_factor": 0.5, "shift_factor": 0.2}
        for name, content in (("llm_config", llm), ("vit_config", vit), ("tiny_extra_config", {"bagel": bagel, "ae": ae, "special_tokens": special})):
            (folder / f"{name}.json").write_text(json.dumps(content))
        model = UniMedVL(ModelConfig.load(folder)).requires_grad_(False)
        for name, parameter in model.named_parameters():
            if not name.endswith("pos_embed"):
                near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
                parameter.copy_(near + scale * self._randn(*parameter.shape))
        for part, state in (("ema", {k: v for k, v in model.state_dict().items() if not k.startswith("vae.")}), ("ae", model.vae.state_dict())):
            save_file({k: v.contiguous() for k, v in state.items()}, folder / f"{part}.safetensors")
            (folder / f"{part}_keys.json").write_text(json.dumps({k: list(v.shape) for k, v in state.items()}))
        return UniMedVL.from_pretrained(folder)

    def _packer_and_training(self) -> None:
        pictures = {"vit_image_0": self._randn(3, 3 * self.sizes.patch, 2 * self.sizes.patch), "vit_image_1": self._randn(3, 2 * self.sizes.patch, self.sizes.patch)}
        shapes = [(3, 4), (2, 5)]
        images = torch.zeros(2, 3, 3 * self.stride, 5 * self.stride)
        for image, (rows, columns) in zip(images, shapes):
            image[:, : rows * self.stride, : columns * self.stride] = self._randn(3, rows * self.stride, columns * self.stride)
        with torch.no_grad():
            mean, logvar = self.model.vae.posterior(images)
            eps = self._randn(*mean.shape)
            latent = self.model.vae.encode(images, eps)
            self._save("03_vae", {"images": images, "mean": mean, "logvar": logvar, "eps": eps, "latent": latent, "decoded": self.model.vae.decode(latent)})
        draw, cut = 0.3, [x[:, : r * self.sizes.latent_patch, : c * self.sizes.latent_patch] for x, (r, c) in zip(latent, shapes)]
        texts = [self._ids(n) for n in (5, 3, 7, 4)]
        samples = [
            [ViTItem(pictures["vit_image_0"]), TextItem(texts[0]), TextItem(texts[1], loss=True)],
            [VAEItem(cut[0]), ViTItem(pictures["vit_image_1"]), TextItem(texts[2]), VAEItem(cut[1], draw=draw), TextItem(texts[3], loss=True)],
        ]
        kinds = {TextItem: "text", ViTItem: "vit_image", VAEItem: "vae_image"}
        plans = [[{"type": kinds[type(item)], "loss": int(getattr(item, "loss", False))} for item in items] for items in samples]
        given = [{"plan": plans[0], "texts": texts[:2], "images": [["vit", 0]]}, {"plan": plans[1], "texts": texts[2:], "images": [["vae", 0], ["vit", 1], ["vae", 1]]}]
        self._save("01_packer_inputs", pictures, {"samples": given, "raw_timesteps_for_each_loss_image": [draw]})
        self._packed(pack(samples, self.config), shapes, latent)

    def _packed(self, batch, shapes: list[tuple[int, int]], latent: Tensor) -> None:
        lists = {"sample_lens": batch.sample_lens, "split_lens": batch.split_lens, "attn_modes": batch.attn_modes}
        arrays = {"packed_text_ids": batch.text_ids, "packed_text_indexes": batch.text_indexes, "packed_position_ids": batch.position_ids, "packed_vit_tokens": batch.vit_patches}
        arrays |= {"packed_vit_token_indexes": batch.vit_indexes, "packed_vit_position_ids": batch.vit_position_ids, "packed_vae_token_indexes": batch.latent_indexes}
        arrays |= {"packed_latent_position_ids": batch.latent_position_ids, "packed_timesteps": batch.timestep_draws, "ce_loss_indexes": batch.ce_indexes}
        arrays |= {"packed_label_ids": batch.ce_labels, "ce_loss_weights": batch.ce_weights, "vit_token_seqlens": torch.tensor(batch.vit_lengths)}
        self._save("01_packer_outputs", arrays | {"mse_loss_indexes": batch.latent_indexes[batch.target_rows]}, lists | {"sequence_length": batch.length, "patchified_vae_latent_shapes": shapes})
        dense = torch.block_diag(*(mask[:n, :n] for n, mask in zip(batch.sample_lens, sample_mask(*lists.values()))))
        self._save("02_attention_mask", {"dense": dense.to(torch.uint8)}, lists)
        with torch.no_grad():
            features = self.model.vit_model(batch.vit_patches, batch.vit_position_ids, batch.vit_lengths)
        seen = {key: arrays[key] for key in ("packed_vit_tokens", "packed_vit_position_ids", "vit_token_seqlens")}
        with torch.no_grad():
            self._save("04_vit", seen | {"features": features, "connector": self.model.connector(features), "llm_input": self.model.embed_vit(batch)})
        self._trained(batch, latent)

    def _trained(self, batch, latent: Tensor) -> None:
        noise, totals = self._randn(*batch.latents.shape), count(batch)
        for case, freeze_und in (("06_train_grads_freeze_und", True), ("06_train_grads", False)):
            model = UniMedVL.from_pretrained(self.folder / "checkpoint")
            parameters = set_trainable(model, PARTS)
            losses = model(batch, noise, freeze_und=freeze_und)
            total, ce, mse = step_loss(losses, totals, 0.25, 1.0)
            total.backward()
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            still = sorted(name for name in parameters if name not in gradients or not gradients[name].any())
            self._save(case, {k: g for k, g in gradients.items() if k not in still or not freeze_und}, {"total": total.item(), "params_with_zero_grad": still, "params_without_grad": []})
        t = model.shifted_timesteps(batch.timestep_draws)
        hidden, place = model.hidden_states(batch, (1 - t[:, None]) * batch.latents + t[:, None] * noise, t)
        tensors = {"padded_latent": latent, "packed_latent_clean": batch.latents, "noise": noise, "shifted_timesteps": t, "last_hidden_state": hidden[place], "ce": losses.ce, "mse": losses.mse}
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for name, gradient in gradients.items():
                # The first step of AdamW with eps 0: a sign.
                parameters[name].sub_(LR * gradient.sign())
            again = model(batch, noise)
        stepped = {name: p for name, p in parameters.items() if "norm" in name} | {f"ema.{name}": DECAY * before[name] + (1 - DECAY) * p.detach() for name, p in parameters.items() if "norm" in name}
        told = {"ce_mean": ce, "mse_mean": mse, "total_ce0p25_mse1": total.item(), "total_ce1_mse1": ce + mse, "num_ce_tokens": totals.ce, "num_mse_tokens": totals.mse}
        told |= {"ce_reweighted": ((losses.ce * batch.ce_weights).sum() / batch.ce_weights.sum()).item(), "grad_norm_before_clip": norm.item()}
        told |= {"optimizer": {"lr": LR, "betas": [0.8, 0.9], "eps": 1e-15, "weight_decay": 0, "max_grad_norm": 0.5, "ema_decay": DECAY}}
        self._save("06_train", tensors, told | {"after_one_step": {"ce_mean": again.ce.mean().item(), "mse_mean": again.mse.mean().item()}})
        self._save("06_train_after_step", stepped)

    def _parts(self) -> None:
        patch, side, t = self.sizes.patch, 9, torch.rand(4, generator=self.rng)
        image = self._randn(3, 2 * patch, 3 * patch)
        with torch.no_grad():
            tensors = {"t": t, "sinusoid_256": timestep_sinusoid(t), "time_embedding": self.model.time_embedder(t), "patchify_in": image, "patchify_out": patchify(image, patch)}
        tensors |= {name: getattr(self.model, name).pos_embed for name in ("latent_pos_embed", "vit_pos_embed")}
        tensors |= {f"extrapolate_{2 * patch}x{3 * patch}": grid_ids(2, 3, side), f"interpolate_{2 * patch}x{3 * patch}": interpolated_grid_ids(2, 3, side)}
        times = denoise.schedule(7, 1.7)
        tensors |= {"timesteps_n7_s1.7": times[:-1], "dts_n7_s1.7": times[:-1] - times[1:]}
        self._save("05_parts", tensors, {"vit_patch_size": patch, "max_num_patches_per_side": side, "len2weight": {str(n): length_weight(n) for n in (0, 3)}})

    @torch.no_grad()
    def _hidden(self, items: Sequence[Item], latents: Tensor | None = None, t: float | None = None) -> tuple[Tensor, Tensor]:
        """Last hidden states in sequence order, and those of the last image's latents."""
        batch = pack([list(items)], self.config)
        times = self.model.shifted_timesteps(batch.timestep_draws)
        x = batch.latents
        if latents is not None:
            x, times = torch.cat([x[: -len(latents)], latents]), torch.cat([times[: -len(latents)], torch.full((len(latents),), t)])
        hidden, place = self.model.hidden_states(batch, x, times)
        hidden = hidden[place]
        return hidden, hidden[batch.latent_indexes[-len(latents) :]] if latents is not None else hidden

    @torch.no_grad()
    def _continued(self, items: list[Item], steps: int) -> tuple[list[int], Tensor]:
        """Greedy tokens from bos on, each from the whole sequence; and the logits."""
        tokens, logits = [self.config.special_tokens.bos_token_id], []
        for _ in range(steps):
            # The packer ends a text with eos, of which nothing before it knows.
            hidden, _ = self._hidden([*items, TextItem(tokens[1:])])
            logits.append(self.model.language_model.lm_head(hidden[-2]))
            tokens.append(int(logits[-1].argmax()))
        return tokens, torch.stack(logits)

    def _understanding(self) -> None:
        image, prompt, steps = self._randn(3, 2 * self.sizes.patch, 3 * self.sizes.patch), self._ids(6), 9
        items = [ViTItem(image), TextItem(prompt)]
        hidden, _ = self._hidden(items)
        tokens, logits = self._continued(items, steps)
        batch, head = pack([items], self.config), self.model.language_model.lm_head
        stop = tokens[3]
        tensors = {"image": image, "prompt_ids": torch.tensor(prompt), "prefill_vit_hidden": hidden[:8], "prefill_text_hidden": hidden[8:], "greedy_tokens": torch.tensor(tokens[:steps])}
        tensors |= {"prefill_text_logits": head(hidden[8:]), "vit_packed_position_ids": batch.position_ids[:8], "text_position_ids": batch.position_ids[8:], "greedy_logits": logits}
        tensors |= {"greedy_tokens_stopped": torch.tensor(tokens[: tokens.index(stop, 1)])}
        cache = generate.prefill(self.model, [items], 0).cache
        for kind, layers in (("key", cache.keys), ("value", cache.values)):
            tensors |= {f"kv_{kind}_layer{layer}": held[0].transpose(0, 1) for layer, held in enumerate(layers)}
        self._save("07_understanding", tensors, {"kv_lens": [16], "rope": [9], "max_length": steps, "stop_token_for_greedy_tokens_stopped": stop})
        prompts = {f"prompt{i}": self._ids(n) for i, n in enumerate((4, 9, 2))}
        found = [self._continued([TextItem(ids)], 5)[0] for ids in prompts.values()]
        logits = torch.cat([head(self._hidden([TextItem(ids)])[0]) for ids in prompts.values()])
        self._save("08_batched_text", {k: torch.tensor(v) for k, v in prompts.items()} | {"tokens": torch.tensor(found).T, "prefill_logits": logits})

    def _velocity(self, context: list[Item], x: Tensor, t: float, grid: tuple[int, int]) -> Tensor:
        blank = torch.zeros(self.sizes.z, *(side * self.sizes.latent_patch for side in grid))
        return self.model.llm2vae(self._hidden([*context, VAEItem(blank, draw=0.0)], x, t)[1])

    @torch.no_grad()
    def _drawing(self) -> None:
        grid, prompt = (3, 2), self._ids(5)
        told = {"image_shape": [side * self.stride for side in grid], "cfg_text_scale": 3.0, "cfg_img_scale": 1.5, "cfg_renorm_min_text_only": 0.0, "cfg_renorm_min_text_img": 0.2}
        x, texts = self._randn(6, self.config.latent_dim), [TextItem(prompt)]
        tensors = {"prompt_ids": torch.tensor(prompt), "x_t": x}
        for t in (0.9, 0.35):
            branches = torch.stack([self._velocity(context, x, t, grid)[None] for context in (texts, [], texts)])
            tensors[f"cond_t{t}"] = branches[0, 0]
            for renorm in ("global", "channel", "text_channel"):
                for name, count_, image, least in (("cfg_text_only", 2, 1.0, 0.0), ("cfg_text_img", 3, 1.5, 0.2)):
                    guidance = denoise.Guidance(2, 1.0, 3.0, image, (0, 1), renorm, least)
                    tensors[f"{name}_{renorm}_t{t}"] = denoise.combine(branches[:count_], guidance)[0]
        self._save("09_generation_step", tensors, told)
        common = {"num_timesteps": self.sizes.steps, "timestep_shift": 2.0, "cfg_renorm_min": 0.0}
        told = common | {"image_shape": told["image_shape"], "cfg_interval": [0.4, 1.0], "cfg_text_scale": 3.0, "cfg_img_scale": 1.0, "cfg_renorm_type": "channel"}
        loop = self._loop(told, grid, [texts, []])
        others = {"img2p0": {"cfg_img_scale": 2.0}, "nocfg": {"cfg_text_scale": 1.0}}
        finals = {f"{k}.final_latent_tokens": self._loop(told | v, grid, [texts, []], loop["init_noise"])["final_latent_tokens"] for k, v in others.items()}
        self._save("10_denoise_t2i", loop | finals | {"prompt_ids": torch.tensor(prompt)}, told | {"variants": dict.fromkeys(others, "")})
        self._editing(common, texts)

    def _editing(self, common: dict, texts: list[TextItem]) -> None:
        grid = (2, 4)
        picture, seen = self._randn(3, *(side * self.stride for side in grid)), self._randn(3, self.sizes.patch, 2 * self.sizes.patch)
        eps = self._randn(1, self.sizes.z, *(side * self.sizes.latent_patch for side in grid))
        images = [VAEItem(self.model.vae.encode(picture[None], eps)[0]), ViTItem(seen)]
        told = common | {"image_shape": list(picture.shape[1:]), "cfg_interval": [0.0, 1.0], "cfg_text_scale": 2.0, "cfg_img_scale": 1.5, "cfg_renorm_type": "text_channel"}
        told |= {"kv_lens": {"main": [21], "cfg_text": [14], "cfg_img": [7]}, "rope": {"main": [9], "cfg_text": [2], "cfg_img": [7]}}
        first = {"vae_image": picture, "vit_image": seen, "vae_eps": eps, "prompt_ids": torch.tensor(texts[0].ids), "prefill_vae_hidden": self._hidden(images[:1])[0]}
        self._save("11_denoise_edit", self._loop(told, grid, [images + texts, images, texts]) | first, told)

    def _loop(self, told: dict, grid: tuple[int, int], branches: list[list[Item]], noise: Tensor | None = None) -> dict[str, Tensor]:
        """Euler steps with every branch's whole sequence read anew at every step."""
        noise = self._randn(grid[0] * grid[1], self.config.latent_dim) if noise is None else noise
        times, low = denoise.schedule(told["num_timesteps"], told["timestep_shift"]), told["cfg_interval"][0]
        guidance = denoise.Guidance(0, 0, told["cfg_text_scale"], told["cfg_img_scale"], (0, 1), told["cfg_renorm_type"], told["cfg_renorm_min"])
        x, before = noise, []
        for t, following in zip(times, times[1:]):
            before.append(x)
            velocities = torch.stack([self._velocity(items, x, float(t), grid)[None] for items in branches])
            guided = t > low and guidance.text > 1
            x = x - (denoise.combine(velocities, guidance)[0] if guided else velocities[0, 0]) * (t - following)
        latent = denoise.to_latent(self.model, x[None], grid)
        decoded = self.model.vae.decode(latent)
        pixels = torch.frombuffer(bytearray(to_image(decoded[0]).tobytes()), dtype=torch.uint8).view(*decoded.shape[2:], 3)
        return {"init_noise": noise, "trajectory": torch.stack(before), "final_latent_tokens": x, "vae_latent": latent, "decoded": decoded, "pixels_uint8": pixels}

    def _preprocess(self) -> None:
        """By hand: 30 by 20 pixels, no side below 24, so 36 by 24; multiples of 8, halves to the even one, so 32 by 24."""
        rule = {"max_size": 64, "min_size": 24, "stride": 8, "max_pixels": 1_806_336}
        row = {"config": "own", "width": 30, "height": 20, "img_num": 1, "out_width": 32, "out_height": 24}
        grey = torch.full((20, 30, 3), 51, dtype=torch.uint8)
        self._save("12_preprocess", {"image_uint8": grey, "vae_64_24_8": torch.full((3, 24, 32), -0.6)}, {"configs": {"own": rule}, "table": [row]})

    def _packing_loop(self) -> None:
        """One group of samples that cost 10 each, sequences of 20."""
        case = {"expected_num_tokens": 20, "max_num_tokens": 25, "max_num_tokens_per_sample": 15, "prefer_buffer_before": 5, "max_buffer_size": 1}
        case |= {"weights": [1], "is_mandatory": [False], "streams": [[[8, 1]] * 4], "uniform_draws": [0.5] * 4}
        batches = [{"samples": [[0, i], [0, i + 1]], "lens": [10, 10], "total": 20} for i in (0, 2)]
        self._save("13_packing_loop", told={"cases": [case | {"batches": batches}]})
