"""Trains a new embedding model whose vectors can be compared with those that an old model stored, so that a
gallery need not be computed anew: Zhou et al., *BT²: Backward-compatible Training with Basis Transformation*,
ICCV 2023, arXiv 2211.03989.

    from dmkit.auxiliary.retrieval.bt2 import BasisTransformationHead, BT2Loss, PseudoClassifier

`head` has the network's last part, `losses` what it is trained on, `scoring` how its vectors are compared,
`index` a gallery that is searched, `tasks` and `training` the training.
"""

from .head import BasisTransformationHead, BT2Output, EmbeddingHead, Rotation
from .index import GalleryIndex
from .losses import BCTLoss, BT2Loss, PseudoClassifier
from .scoring import compatibility, compatible_scores, mixed_scores, pad_to, unit_rows
from .tasks import Encoder, EncoderTask, build_targets

__all__ = [
    "BCTLoss",
    "BT2Loss",
    "BT2Output",
    "BasisTransformationHead",
    "EmbeddingHead",
    "Encoder",
    "EncoderTask",
    "GalleryIndex",
    "PseudoClassifier",
    "Rotation",
    "build_targets",
    "compatibility",
    "compatible_scores",
    "mixed_scores",
    "pad_to",
    "unit_rows",
]
