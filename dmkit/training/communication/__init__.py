"""What processes send each other instead of whole gradients: compressors, and EF21 as a hook of DDP.

    python scripts/train_unconditional.py ... --comm_hook ef21 --comm_ratio 0.01

Scripts of one's own, after `module = accelerator.prepare(module)`:

    state = register_ef21(accelerator, module, TopK(0.01))
"""

from .compressors import Compressor, Grid, Natural, RandK, Sparse, TopK
from .ef21 import EF21State, ef21_hook
from .registration import Communication, register_ef21

__all__ = [
    "Communication",
    "Compressor",
    "EF21State",
    "Grid",
    "Natural",
    "RandK",
    "Sparse",
    "TopK",
    "ef21_hook",
    "register_ef21",
]
