"""From token losses to one number: exact global means over all packs of a step, on any number of workers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.packing import PackedSequence
from model.unimedvl import TokenLosses


@dataclass
class TokenCounts:
    """Tokens that carry a loss: text tokens and noised latent tokens."""

    ce: int = 0
    mse: int = 0

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(self.ce + other.ce, self.mse + other.mse)


def count(pack: PackedSequence) -> TokenCounts:
    return TokenCounts(len(pack.ce_labels), len(pack.target_rows))


def step_loss(losses: TokenLosses, totals: TokenCounts, ce_weight: float, mse_weight: float) -> tuple[Tensor, float, float]:
    """This pack's share of the step's loss, and its unweighted shares of the two means.

    Shares of all packs of the step add up to the exact token means; a pack without tokens of one kind adds zero.
    So does, to the gradients, one that meets nothing which learns.
    """
    ce = losses.ce.sum() / max(totals.ce, 1)
    mse = losses.mse.mean(dim=-1).sum() / max(totals.mse, 1)
    total = ce_weight * ce + mse_weight * mse
    if torch.is_grad_enabled() and not total.requires_grad:
        total.requires_grad_()  # backward then ends here, where it would be refused
    return total, ce.item(), mse.item()
