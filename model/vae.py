"""The generation canvas: the FLUX autoencoder between pixels and latents."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import VAEConfig


class _GroupNorm(nn.GroupNorm):
    """As published. On a GPU one picture's groups are too few for the usual kernel, which sums each in one block."""

    def forward(self, x: Tensor) -> Tensor:
        return _normed_widely(x, self) if x.is_cuda and len(x) == 1 else super().forward(x)


def _normed_widely(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """The group norm of one picture [1, c, H, W] in passes that take the whole device; float32 where autocast would have it so."""
    wide = x.float().contiguous()
    variance, mean = torch.var_mean(wide.view(norm.num_groups, -1), dim=1, correction=0, keepdim=True)
    scale = norm.weight.float().view(norm.num_groups, -1) * torch.rsqrt(variance + norm.eps)
    shift = norm.bias.float().view(norm.num_groups, -1) - mean * scale
    y = torch.addcmul(shift.view(1, -1, 1, 1), wide, scale.view(1, -1, 1, 1))
    return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return _GroupNorm(groups, channels, eps=1e-6)


class _ResBlock(nn.Module):
    def __init__(self, inner: int, outer: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inner, groups), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = _norm(outer, groups), nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class _AttnBlock(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.v, self.proj_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class _Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """One resolution: residual blocks, then a change of resolution where there is a next level."""

    def __init__(self, inner: int, outer: int, blocks: int, groups: int):
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(inner if i == 0 else outer, outer, groups) for i in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resample in ("downsample", "upsample"):
            if hasattr(self, resample):
                x = getattr(self, resample)(x)
        return x


class _Mid(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1, self.block_2 = (_ResBlock(channels, channels, groups) for _ in range(2))
        self.attn_1 = _AttnBlock(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels [b, 3, H, W] in [-1, 1] to mean and log-variance, stacked [b, 2z, H/8, W/8]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * m for m in (1, *config.ch_mult)]
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(_Level(a, b, config.num_res_blocks, config.norm_groups) for a, b in zip(widths, widths[1:]))
        for level in self.down[:-1]:
            level.downsample = _Downsample(level.block[-1].conv2.out_channels)
        self.mid, self.norm_out = _Mid(widths[-1], config.norm_groups), _norm(widths[-1], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents [b, z, h, w] to pixels [b, 3, 8h, 8w]."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = [config.ch * m for m in (*config.ch_mult, config.ch_mult[-1])]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _Mid(widths[-1], config.norm_groups)
        # Level 0 is the finest; decoding runs from the last to the first.
        self.up = nn.ModuleList(_Level(b, a, config.num_res_blocks + 1, config.norm_groups) for a, b in zip(widths, widths[1:]))
        for level in self.up[1:]:
            level.upsample = _Upsample(level.block[-1].conv2.out_channels)
        self.norm_out = _norm(widths[0], config.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoEncoder(nn.Module):
    """Encoder and decoder with the published normalisation of latents."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, each [b, z, h, w]."""
        return self.encoder(pixels.to(self.encoder.conv_in.weight)).chunk(2, dim=1)

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Normalised latents [b, z, h, w]; the posterior's mean unless `noise` asks for a sample of it."""
        mean, logvar = self.posterior(pixels)
        z = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        return self.config.scale_factor * (z - self.config.shift_factor)

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents back to pixels [b, 3, H, W] around [-1, 1]."""
        z = latent / self.config.scale_factor + self.config.shift_factor
        # Channels last is the order that convolutions work in: nothing is turned around between them.
        return self.decoder(z.to(self.decoder.conv_in.weight).contiguous(memory_format=torch.channels_last))


def latent_to_tokens(latent: Tensor, patch: int) -> Tensor:
    """(z, H, W) -> [H/p * W/p, p*p*z] with inner order (row, column, channel)."""
    channels, height, width = latent.shape
    x = latent.reshape(channels, height // patch, patch, width // patch, patch)
    return x.permute(1, 3, 2, 4, 0).reshape(-1, patch * patch * channels)


def tokens_to_latent(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """Inverse of `latent_to_tokens` for a batch: [b, rows*columns, p*p*z] -> [b, z, rows*p, columns*p]."""
    x = tokens.unflatten(1, (rows, columns)).unflatten(3, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, rows * patch, columns * patch)
