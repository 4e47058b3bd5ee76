"""Where things are: fixed 2-D sin-cos tables, table indices of image patches, rotary angles."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def sincos_table(side: int, width: int) -> Tensor:
    """Fixed 2-D table [side*side, width]: columns in the first half of the width, rows in the second."""
    column, row = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    table = np.concatenate([_sincos(column.reshape(-1), width // 2), _sincos(row.reshape(-1), width // 2)], axis=1)
    return torch.from_numpy(table).float()


def _sincos(position: np.ndarray, width: int) -> np.ndarray:
    frequency = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angle = np.outer(position, frequency)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def interpolated_grid_ids(rows: int, columns: int, table_side: int) -> Tensor:
    """Indices [rows*columns] of a grid spread over the whole table (BAGEL's `interpolate_pos`, off by default)."""
    bins = torch.arange(1 / table_side, 1.0, 1 / table_side)
    row, column = (torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / n), bins, right=True) for n in (rows, columns))
    return (row[:, None] * table_side + column).flatten()


@lru_cache
def grid_ids(rows: int, columns: int, table_side: int) -> Tensor:
    """Row-major indices [rows*columns] into a `table_side` x `table_side` table. Equal grids share one tensor.

    Raises:
        ValueError: the grid is larger than the table.
    """
    if max(rows, columns) > table_side:
        raise ValueError(f"a grid of {rows}x{columns} patches exceeds the position table of {table_side}x{table_side}")
    # Kept for whoever comes next, who may want gradients.
    with torch.inference_mode(False):
        return (torch.arange(rows)[:, None] * table_side + torch.arange(columns)).flatten()


def rotary(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and signed sin [n, 1, head_dim] of every position's angles, which are computed in float32."""
    angle = (position_ids.float()[:, None] * _frequencies(head_dim, theta, position_ids.device))[:, None]
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


@lru_cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


def apply_rotary(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Half-split rotation of x [n, heads, head_dim] by the angles of `rotary`. Not for recorded gradients."""
    turned = x * cos
    first, second = turned.chunk(2, dim=-1)
    ahead, behind = x.chunk(2, dim=-1)
    for_first, for_second = signed_sin.chunk(2, dim=-1)
    first.addcmul_(behind, for_first)
    second.addcmul_(ahead, for_second)
    return turned


def timestep_sinusoid(t: Tensor, width: int = 256) -> Tensor:
    """[n] in [0, 1] -> [n, width], cosines first."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
