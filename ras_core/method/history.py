"""The last evaluations of every latent pixel, from which the multirate integrator computes its steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class History:
    """The last two evaluations of every latent pixel.

    Attributes:
        d, d_before: (b, c, H, W) denoised estimate of the last evaluation and of the one before it.
        x: (b, c, H, W) state at the last evaluation.
        t, t_before: (b, 1, H, W) times of the same two evaluations; -inf for an evaluation that has not taken
            place.
    """

    d: Tensor
    d_before: Tensor
    x: Tensor
    t: Tensor
    t_before: Tensor

    @classmethod
    def empty(cls, x: Tensor) -> History:
        """The history of a run that starts with state x, before its first evaluation."""
        never = torch.full_like(x[:, :1], -torch.inf)
        return cls(x, x, x, never, never)

    def after(self, x: Tensor, d: Tensor, t: float, fresh: Tensor | None = None) -> History:
        """The history after an evaluation at time t.

        Args:
            x, d: (b, c, H, W) state and denoised estimate at time t.
            t: time of the evaluation.
            fresh: (b, 1, H, W) bool, the pixels that were evaluated; None if all were.
        """
        if fresh is None:
            return History(d=d, d_before=self.d, x=x, t=torch.full_like(self.t, t), t_before=self.t)
        return History(
            d=torch.where(fresh, d, self.d),
            d_before=torch.where(fresh, self.d, self.d_before),
            x=torch.where(fresh, x, self.x),
            t=self.t.masked_fill(fresh, t),
            t_before=torch.where(fresh, self.t, self.t_before),
        )
