"""Low-rank tables over users and items: scores R = U V' and flip logits g = P Q'."""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


def _table(rows: int, dim: int, scale: float) -> nn.Embedding:
    """Factors, uniform between 0 and scale / √dim, as the authors have them."""
    if rows < 1 or dim < 1:
        raise ValueError(f"A table needs rows and columns, not {rows} x {dim}.")
    table = nn.Embedding(rows, dim)
    nn.init.uniform_(table.weight)
    table.weight.data.mul_(scale / dim**0.5)
    return table


def _products(users: Tensor, items: Tensor) -> Tensor:
    """(B, k) and (B, ..., k) -> (B, ...)."""
    return (users.view(len(users), *[1] * (items.ndim - 2), -1) * items).sum(-1)


class MatrixFactorization(ModelMixin, ConfigMixin):
    """R_ui = U_u·V_i.

    Args:
        num_users: M.
        num_items: N.
        dim: K0, length of the factors.
    """

    @register_to_config
    def __init__(self, num_users: int, num_items: int, dim: int = 50):
        super().__init__()
        self.user_factors = _table(num_users, dim, 1.0)
        self.item_factors = _table(num_items, dim, 1.0)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Users (B,), and items (B, ...) for each -> scores (B, ...)."""
        return _products(self.user_factors(users), self.item_factors(items))

    def all_scores(self, users: Tensor) -> Tensor:
        """Users (B,) -> their scores of every item (B, N)."""
        return self.user_factors(users) @ self.item_factors.weight.T


class FlipModel(ModelMixin, ConfigMixin):
    """g_ui = P_u·Q_i, whose sigmoid is the probability that an item which the user likes goes unclicked.

    It starts near g = -init_scale² / 4: next to no flips.

    Args:
        num_users: M.
        num_items: N.
        dim: K1, length of the factors.
        init_scale: of P, and of Q with the opposite sign.
    """

    @register_to_config
    def __init__(self, num_users: int, num_items: int, dim: int = 50, init_scale: float = 5.0):
        super().__init__()
        self.user_factors = _table(num_users, dim, init_scale)
        self.item_factors = _table(num_items, dim, -init_scale)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Users (B,), and items (B, ...) for each -> logits (B, ...)."""
        return _products(self.user_factors(users), self.item_factors(items))
