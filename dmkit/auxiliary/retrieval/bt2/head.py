"""The last part of a network whose vectors hold an old space and a new one.

Zhou et al., *BT²: Backward-compatible Training with Basis Transformation*, ICCV 2023 (arXiv:2211.03989). Of
features u with d_n + d_o entries,

    f = u[:d_n] / ‖u[:d_n]‖,    o = A relu(u) + b, to unit length                                   (1)
    e = o[:m] to unit length                                                                       (2)
    v = (e, P C f),    z = R v[:d_o],    φ = (z, v[d_o:])                                          (3)

with P and R orthonormal, so that ⟨φ(x), φ(y)⟩ = ⟨e_x, e_y⟩ + C² ⟨f_x, f_y⟩: nothing of the new space f is
lost, while z, d_o numbers in front, is free to line up with the old space. m numbers are added for that.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ....errors import FileFormatError


class BT2Output(NamedTuple):
    """What a head makes of B features, all float32.

    Attributes:
        logits: (B, classes).
        compatible: (B, d_o), z, the part that lines up with the old space; not of unit length.
        new: (B, d_n), f, of unit length.
        embedding: (B, d_n + m), φ, what is stored.
    """

    logits: Tensor
    compatible: Tensor
    new: Tensor
    embedding: Tensor


class Rotation(nn.Module):
    """x -> W x with W = B exp(A - Aᵀ) orthonormal, A lower triangular and trained, B a fixed random basis.

    It is what `torch.nn.utils.parametrizations.orthogonal` does with a square matrix, in a form that can be
    built without memory, as `from_pretrained` does. The determinant keeps B's sign in training. A and B are
    both part of the state; either without the other would be another map, and is refused. W is applied in
    float32, under autocast too, since orthonormality drifts in half precision. The exponential is taken in
    float64 where the device has it: in float32 W Wᵀ misses the identity by 1e-4 once A has grown.

    Args:
        dim: of x.
        baked: whether W itself is kept instead of A and B.
    """

    def __init__(self, dim: int, baked: bool = False):
        super().__init__()
        self.baked = baked
        if baked:
            self.matrix = nn.Parameter(torch.eye(dim, dtype=torch.float32), requires_grad=False)
        else:
            # Whatever the default type is: there is no QR decomposition in half precision.
            self.skew = nn.Parameter(torch.zeros(dim, dim, dtype=torch.float32))
            base = nn.init.orthogonal_(torch.empty(dim, dim, dtype=torch.float32))
            # No buffer: `from_pretrained` keeps only parameters in float32.
            self.base = nn.Parameter(base, requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """W, (dim, dim).

        Raises:
            TypeError: parts that were cast to half precision and are no longer orthonormal.
        """
        part = self.matrix if self.baked else self.base
        if part.dtype != torch.float32:
            raise TypeError(
                f"A rotation in {part.dtype} is none. Give `from_pretrained` the torch_dtype, which leaves "
                "rotations in float32, or use autocast."
            )
        if self.baked:
            return self.matrix
        exact = torch.float32 if part.device.type == "mps" else torch.float64
        with torch.autocast(part.device.type, enabled=False):
            lower = self.skew.tril(-1).to(exact)
            return (self.base.to(exact) @ torch.linalg.matrix_exp(lower - lower.T)).float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) -> (B, dim) in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ self.weight.T

    def bake(self) -> Rotation:
        """The same map with W as it is now, for inference."""
        baked = Rotation(len(self.weight), baked=True)
        baked.matrix.data = self.weight.detach().clone()
        return baked

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # An error, and not only a missing key, so that strict=False does not pass over it.
        if ((skew := f"{prefix}skew") in state_dict) != ((base := f"{prefix}base") in state_dict):
            error_msgs.append(f"{skew} and {base} are one rotation; only one of them is there.")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _projection(in_features: int | None, out_features: int) -> nn.Module:
    return nn.Identity() if in_features is None else nn.Linear(in_features, out_features)


def _direction(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _logits(scale: float, classifier: nn.Linear, f: Tensor) -> Tensor:
    # f is float32 even where the classifier is half.
    return scale * classifier(f.to(classifier.weight.dtype)).float()


class BasisTransformationHead(ModelMixin, ConfigMixin):
    """Equations (1) to (3), behind any backbone: `head(backbone(x)).embedding`.

    Args:
        in_features: length of the backbone's features, of which a linear layer makes u; None if they are u,
            as where the backbone's own last layer has d_n + d_o outputs.
        dim_new: d_n, length of the new teacher's vectors.
        dim_old: d_o, length of what is in the old gallery.
        num_classes: of the classifier that is trained along.
        extra_dim: m, in [0, d_o], with d_o ≤ d_n + m.
        scale: C; the new space weighs C² : 1 against e.
        logit_scale: what the classifier's logits are multiplied by. Its input has unit length, and the
            paper's 1 leaves it to the classifier's weights to grow.
        prefixes: lengths of the galleries before the old one, in a chain of models; see `extend`.
        baked: whether P and R are fixed matrices; see `export`.

    Raises:
        ValueError: dimensions that do not go together.
    """

    _keep_in_fp32_modules: ClassVar = ["P", "R"]  # a list: Diffusers takes a tuple for one name

    @register_to_config
    def __init__(
        self,
        in_features: int | None,
        dim_new: int,
        dim_old: int,
        num_classes: int,
        extra_dim: int = 32,
        scale: float = 2.0,
        logit_scale: float = 1.0,
        prefixes: Sequence[int] = (),
        baked: bool = False,
    ):
        super().__init__()
        if extra_dim < 0:
            raise ValueError(f"extra_dim adds dimensions; it cannot be {extra_dim}.")
        if extra_dim > dim_old:
            raise ValueError(f"extra_dim is {extra_dim}, but only dim_old = {dim_old} entries can hold it.")
        if dim_old > dim_new + extra_dim:
            raise ValueError(
                f"dim_old = {dim_old} does not fit into vectors of dim_new + extra_dim = "
                f"{dim_new} + {extra_dim}; add at least {dim_old - dim_new}."
            )
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}.")
        self.project = _projection(in_features, dim_new + dim_old)
        self.extra = nn.Linear(dim_new + dim_old, dim_old)
        self.classifier = nn.Linear(dim_new, num_classes, bias=False)
        self.P = Rotation(dim_new, baked)
        self.R = Rotation(dim_old, baked)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, **kwargs: Any) -> BasisTransformationHead:
        """Diffusers' own, but a file that lacks a tensor is refused, where Diffusers would draw it anew.

        Raises:
            FileFormatError: a file without all tensors.
        """
        head, found = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        if found["missing_keys"]:
            raise FileFormatError(f"{folder} lacks {', '.join(sorted(found['missing_keys']))}.")
        return head

    @property
    def embedding_dim(self) -> int:
        """Length of φ: d_n + m."""
        return self.config.dim_new + self.config.extra_dim

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of all galleries that φ can be compared with, by its first entries."""
        return tuple(sorted({*self.config.prefixes, self.config.dim_old, self.embedding_dim}))

    def forward(self, features: Tensor) -> BT2Output:
        """(B, in_features) -> the parts of φ."""
        config = self.config
        u = self.project(features)
        f = _direction(u[:, : config.dim_new])  # (1)
        o = _direction(self.extra(u.relu()))
        # (2). An index from the end would take everything where m = 0.
        e = _direction(o[:, : config.extra_dim])
        v = torch.cat([e, self.P(config.scale * f)], dim=1)  # (3)
        z = self.R(v[:, : config.dim_old])
        embedding = torch.cat([z, v[:, config.dim_old :]], dim=1)
        return BT2Output(_logits(config.logit_scale, self.classifier, f), z, f, embedding)

    def extend(
        self,
        in_features: int | None,
        *,
        dim_new: int | None = None,
        extra_dim: int | None = None,
        num_classes: int | None = None,
    ) -> BasisTransformationHead:
        """The head of the next model, whose old gallery is this one's, φ with all its entries.

        Its vectors compare with all galleries before too: their vectors line up with the first entries of
        each later one's.

        Args:
            in_features: of the next backbone.
            dim_new: of the next teacher; this one's by default.
            extra_dim: this one's by default, or as many as are needed.
            num_classes: this one's by default.
        """
        config = self.config
        dim_new = config.dim_new if dim_new is None else dim_new
        if extra_dim is None:
            extra_dim = max(config.extra_dim, self.embedding_dim - dim_new)
        return BasisTransformationHead(
            in_features,
            dim_new,
            self.embedding_dim,
            config.num_classes if num_classes is None else num_classes,
            extra_dim=extra_dim,
            scale=config.scale,
            logit_scale=config.logit_scale,
            prefixes=self.lengths[:-1],
        )

    def export(self) -> BasisTransformationHead:
        """A copy for inference, with P and R as plain matrices."""
        baked = copy.deepcopy(self)
        baked.P, baked.R = self.P.bake(), self.R.bake()
        baked.register_to_config(baked=True)
        return baked


class EmbeddingHead(ModelMixin, ConfigMixin):
    """Vectors of unit length and a classifier on them: old models, teachers, and the baseline BCT.

    Args:
        in_features: length of the backbone's features; None if they are the vector before its normalisation.
        dim: of the vectors.
        num_classes: of the classifier.
        logit_scale: what its logits are multiplied by.
        dim_old: how many of the entries line up with an old space; all by default. Fewer are the naive way of
            adding dimensions.
    """

    @register_to_config
    def __init__(
        self,
        in_features: int | None,
        dim: int,
        num_classes: int,
        logit_scale: float = 1.0,
        dim_old: int | None = None,
    ):
        super().__init__()
        if dim_old is not None and not 0 < dim_old <= dim:
            raise ValueError(f"dim_old is in 1 to dim = {dim}, not {dim_old}.")
        self.project = _projection(in_features, dim)
        self.classifier = nn.Linear(dim, num_classes, bias=False)

    def forward(self, features: Tensor) -> BT2Output:
        """(B, in_features) -> the vector, whose first entries are its compatible part."""
        f = _direction(self.project(features))
        logits = _logits(self.config.logit_scale, self.classifier, f)
        return BT2Output(logits, f[:, : self.config.dim_old], f, f)


Head = BasisTransformationHead | EmbeddingHead
"""Both take features and return a `BT2Output`."""


def head_parameters(module: nn.Module) -> list[dict[str, Any]]:
    """Groups of an optimiser in which no weight decay pulls rotations back to where they began."""
    skew = [part.skew for part in module.modules() if isinstance(part, Rotation) and not part.baked]
    rotations = {id(p) for p in skew}
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in rotations]
    return [{"params": rest}, {"params": skew, "weight_decay": 0.0}] if skew else [{"params": rest}]
