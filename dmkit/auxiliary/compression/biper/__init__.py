"""BiPer gives a network's layers binary weights and activations: weights are a square wave of latent numbers,
trained through the sine of the same frequency ω, which is kept with them: Vargas, Correa, Hinojosa and
Arguello, *BiPer: Binary Neural Networks using a Periodic Function*, CVPR 2024, arXiv 2404.01278.

    s(w) = sin(ω w)                                                                               (1)
    b(w) = sign(s(w)),   ∂b/∂w := ∂s/∂w = ω cos(ω w)                                              (2)
    y = α (x_b * w_b),   x_b = sign(x / σ(x)),   ∂x_b/∂x := max(0, 2 - 2 |x / σ(x)|) / σ(x)       (3)
    stage 1: w_b = s(w);   stage 2, from its weights on: w_b = b(w)                               (4)
    loss = task + τ Σ_layers mean s(w)²                                                           (5)

with sign(0) = 1, one learned α for each output, and σ the deviation over a sample in training (evaluation
leaves it out: a sign knows no scale).

    binarize(model, omega=20)           # replaces layers; train it, stage 1
    set_stage(model, "binary")          # then train it again, stage 2
    export_packed(model, "folder")      # one bit a weight

`functions` has (1) and (2), `layers` (3), `converting` takes any module, `measuring` says what the binary
weights lose, `packing` and `files` save, `training` is the recipe.
"""

from .converting import binarize, binary_layers, set_stage
from .files import load_binary, save_binary
from .functions import ActivationSign, WeightSign, square_wave, wave
from .layers import BiPerConv2d, BiPerLinear
from .measuring import laplace_error, quantization_error
from .networks import BinaryResNet
from .packing import PackedConv2d, PackedLinear, export_packed, load_packed

__all__ = [
    "ActivationSign",
    "BiPerConv2d",
    "BiPerLinear",
    "BinaryResNet",
    "PackedConv2d",
    "PackedLinear",
    "WeightSign",
    "binarize",
    "binary_layers",
    "export_packed",
    "laplace_error",
    "load_binary",
    "load_packed",
    "quantization_error",
    "save_binary",
    "set_stage",
    "square_wave",
    "wave",
]
