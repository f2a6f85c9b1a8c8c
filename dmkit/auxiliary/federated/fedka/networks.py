"""A small network in the form that clients train.

Any `nn.Module` serves that has `features(x) -> (B, d)`, `classify(features) -> (B, classes)`, and for the
adversarial loss `domains(features) -> (B, 2)`; checkpoints ask for `save_pretrained` and `from_pretrained`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class DomainNet(ModelMixin, ConfigMixin):
    """Linear layers with ReLU as features, a linear classifier, a domain head with one hidden layer.

    Args:
        widths: of the input and of each layer of features; the last is d.
        classes: outputs of the classifier.
        domain_width: of the domain head's hidden layer; 0 for no such head.
        batch_norm: whether each layer of features has one, before its ReLU.
    """

    @register_to_config
    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 64),
        classes: int = 10,
        domain_width: int = 32,
        batch_norm: bool = False,
    ):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths: at least an input and the features, not {list(widths)}.")
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batch_norm else []), nn.ReLU()]
        self.extractor, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], classes)
        if domain_width:
            self.domain_head = nn.Sequential(
                nn.Linear(widths[-1], domain_width), nn.ReLU(), nn.Linear(domain_width, 2)
            )

    def features(self, inputs: Tensor) -> Tensor:
        """(B, ...) with widths[0] numbers an item -> (B, d)."""
        return self.extractor(inputs.flatten(1))

    def classify(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, classes)."""
        return self.head(features)

    def domains(self, features: Tensor) -> Tensor:
        """(B, d) -> (B, 2), a client's data and the site's."""
        return self.domain_head(features)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, classes)."""
        return self.classify(self.features(inputs))
