"""The multi-kernel maximum mean discrepancy between two samples of features.

For Z = [A; B], A (n, d), B (m, d), N = n + m, D_ij = ‖z_i - z_j‖²:

    bw_0 = Σ D / (N² - N)  without a gradient,   bw_u = bw_0 κ^(u - ⌊U/2⌋),  u = 0 … U-1
    K = Σ_u exp(-D / bw_u)
    MKMMD² = mean(K_AA) + mean(K_BB) - 2 mean(K_AB)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Below it, features are as good as constant, and D / bw would be 0/0.
NARROWEST = 1e-12


class MultiKernelMMD(nn.Module):
    """MKMMD² of two samples; symmetric, in [0, 2 num] if biased.

    The biased estimate of two samples of one law is well above 0 (0.37 on average for 16 rows of 8 numbers):
    a loss, not a distance. The unbiased one is right on average and may be negative.

    Args:
        num: U, the number of kernels, at least 1.
        mul: κ, the ratio of one bandwidth to the one before, above 1 unless there is one kernel.
        unbiased: leaves the diagonals of K_AA and K_BB out; both samples then need two rows.
        bandwidth: bw_0 as a constant; from the samples by default.

    Raises:
        ValueError: values out of these ranges.
    """

    def __init__(
        self, num: int = 5, mul: float = 2.0, unbiased: bool = False, bandwidth: float | None = None
    ):
        super().__init__()
        if num < 1 or not (mul > 1 or num == 1):
            raise ValueError(f"At least one kernel and a ratio above 1 are needed, not {num} and {mul}.")
        if bandwidth is not None and not bandwidth > 0:
            raise ValueError(f"A bandwidth is positive, not {bandwidth}.")
        self.num, self.mul, self.unbiased, self.bandwidth = num, mul, unbiased, bandwidth

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """A scalar, for features a (n, ...) and b (m, ...), in float32 or, where they are, float64.

        Raises:
            ValueError: features of different sizes, or too few rows.
        """
        a, b = a.flatten(1), b.flatten(1)
        if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 1 + self.unbiased:
            raise ValueError(f"Features {tuple(a.shape)} and {tuple(b.shape)} cannot be compared.")
        with torch.autocast(a.device.type, enabled=False):
            kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
            a, b = a.to(kind), b.to(kind)
            # D does not change with the origin; near the mean its differences lose the fewest digits.
            origin = torch.cat([a, b]).mean(0).detach()
            a, b = a - origin, b - origin
            aa, bb, ab = _squares(a, a), _squares(b, b), _squares(a, b)
            widths = self._bandwidths(aa, bb, ab)
            return self._mean(aa, widths) + self._mean(bb, widths) - 2 * _kernels(ab, widths).mean()

    def _bandwidths(self, aa: Tensor, bb: Tensor, ab: Tensor) -> Tensor:
        count = len(aa) + len(bb)
        total = (aa.sum() + bb.sum() + 2 * ab.sum()).detach()
        base = total / (count**2 - count) if self.bandwidth is None else total.new_tensor(self.bandwidth)
        base = base.clamp(min=NARROWEST)
        return base * self.mul ** (torch.arange(self.num, device=base.device) - self.num // 2)

    def _mean(self, squares: Tensor, widths: Tensor) -> Tensor:
        kernels, n = _kernels(squares, widths), len(squares)
        if self.unbiased:
            return (kernels.sum() - kernels.diagonal().sum()) / (n * (n - 1))
        return kernels.mean()


def _squares(a: Tensor, b: Tensor) -> Tensor:
    # Not torch.cdist()², whose root has no gradient at 0.
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _kernels(squares: Tensor, widths: Tensor) -> Tensor:
    return torch.exp(-squares / widths[:, None, None]).sum(0)
