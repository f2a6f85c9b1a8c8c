"""RWS makes a trained network robust against a corruption (noise, blur, fog, ...) by adding a small file, a
robust weight signature, to its shallow layers, as strongly as wanted and removable bit for bit: Cai, Zhang
and Wang, *Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?*, ICML 2023, arXiv
2302.12480.

θ_0 are common pre-trained weights, θ_s is θ_0 fine-tuned on clean data, θ_c on data with corruption c. For
each tensor l of the shallow layers S:

    a = θ_s - θ_0,   d = θ_c - θ_0                                                                (1)
    RWS = d - (<a, d> / ‖a‖²) a                                                                   (2)
    patched:  θ + Σ_c w_c RWS_c  for l in S,  θ elsewhere;  w_c = α / C by default                (3)

(2) is what of the robust change is orthogonal to the clean one. θ in (3) is θ_s or any other network of the
architecture.

    signature = RobustWeightSignature.extract(base, standard, robust, layers="conv:5").quantize(levels=16)
    with patch(standard, signature):
        ...

`layers`, `signature`, `quantizing` and `patching` are the four steps; `evaluating` measures, `training` has
the fine-tuning.
"""

from .evaluating import evaluate_corruptions
from .patching import Patch, patch
from .quantizing import Codes
from .signature import RobustWeightSignature, SignatureMetadata

__all__ = [
    "Codes",
    "Patch",
    "RobustWeightSignature",
    "SignatureMetadata",
    "evaluate_corruptions",
    "patch",
]
