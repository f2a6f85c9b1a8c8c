"""Small denoisers with long skips, and an independent way to scale their skips."""

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    # Not the parent's defaults: they must survive every round trip.
    "norm_num_groups": 4,
    "act_fn": "gelu",
    "norm_eps": 1e-4,
}
PLAIN = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}
KINDS = {"unconditional": (UNet2DModel, PLAIN), "conditional": (UNet2DConditionModel, CROSS)}


def stock(kind: str, seed: int = 0, **changes):
    """A small UNet of Diffusers in evaluation mode."""
    torch.manual_seed(seed)
    model, blocks = KINDS[kind]
    return model(**{**SMALL, **blocks, **changes}).eval()


def inputs(model, batch: int = 2) -> dict[str, torch.Tensor]:
    """What the model is called with."""
    generator = torch.Generator().manual_seed(5)
    c = model.config
    shape = (batch, c.in_channels, c.sample_size, c.sample_size)
    given = {"sample": torch.randn(shape, generator=generator), "timestep": torch.arange(batch) * 300 + 7}
    if "cross_attention_dim" in c:
        given["encoder_hidden_states"] = torch.randn(batch, 3, c.cross_attention_dim, generator=generator)
    return given


@torch.no_grad()
def run(model, **changes) -> torch.Tensor:
    return model(**{**inputs(model), **changes}).sample


@contextmanager
def scaled_by_hand(model, factors: Sequence[Sequence[float]]):
    """Multiplies the tuple of up block b by `factors[b]`, by replacing the blocks' `forward`."""

    def scaling(forward, row):
        def replaced(*args, **kwargs):
            if "res_hidden_states_tuple" in kwargs:
                skips = kwargs["res_hidden_states_tuple"]
                kwargs["res_hidden_states_tuple"] = tuple(f * x for f, x in zip(row, skips, strict=True))
            else:
                args = (args[0], tuple(f * x for f, x in zip(row, args[1], strict=True)), *args[2:])
            return forward(*args, **kwargs)

        return replaced

    for block, row in zip(model.up_blocks, factors, strict=True):
        block.forward = scaling(block.forward, row)
    yield model
    for block in model.up_blocks:
        del block.forward
