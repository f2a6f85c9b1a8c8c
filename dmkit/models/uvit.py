"""A U-ViT-like denoiser: a transformer over patches with long skips, the backbone that ScaleLong was made
on.

Bao et al., *All are Worth Words: A ViT Backbone for Diffusion Models*, CVPR 2023, arXiv 2209.12152. Time,
class and patches are all tokens, [t; y; patches] + positions. Of L layers beside a middle one, the first
N = L/2 are the encoder and the last N the decoder; with the scaling of `scaling`,

    h_{i-1} = block_i(W_i [h_i ; κ_i x_i]),   i = N … 1

The skip enters a bare linear map, so constant scaling acts in full, unlike in a UNet with group norms.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .scaling import LongSkipScaler, SkipScaledModel, SkipScaling
from .skips import LongSkip


class UViTModel(SkipScaledModel, ModelMixin, ConfigMixin):
    """A transformer with long skips; called as `UNet2DModel` is, and fit for the same pipelines.

    Args:
        sample_size: side of the square images in pixels; it fixes the number of tokens.
        patch_size: side of a patch in pixels; divides `sample_size`.
        in_channels, out_channels: channels of input and output.
        num_layers: transformer blocks beside the middle one; even. N = num_layers / 2 long skips.
        num_attention_heads, attention_head_dim: their product is the width D of the tokens.
        num_class_embeds: number of classes for `class_labels`; None for an unconditional model.
        dropout: in attention and feed-forward layers.
        skip_scaling: `none` (default; a plain U-ViT), `inv_sqrt2`, `cs` or `ls`.
        skip_kappa: κ of `cs`, in (0, 1].
        skip_reduction, skip_shared, skip_init_gate: the gates of `ls`, one per token; see
            `dmkit.models.SkipScaling`.

    Raises:
        ValueError: sizes that do not divide, or a skip option out of range.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 3,
        out_channels: int = 3,
        num_layers: int = 12,
        num_attention_heads: int = 8,
        attention_head_dim: int = 64,
        num_class_embeds: int | None = None,
        dropout: float = 0.0,
        skip_scaling: str = "none",
        skip_kappa: float = 0.7,
        skip_reduction: int = 16,
        skip_shared: bool = True,
        skip_init_gate: float = 0.5,
    ):
        super().__init__()
        if sample_size % patch_size:
            raise ValueError(f"patch_size {patch_size} does not divide sample_size {sample_size}.")
        if num_layers < 2 or num_layers % 2:
            raise ValueError(f"num_layers is {num_layers}; it must be even and at least 2.")
        width = num_attention_heads * attention_head_dim
        self.extras = 1 if num_class_embeds is None else 2
        tokens = self.extras + (sample_size // patch_size) ** 2
        self.gradient_checkpointing = False

        def block() -> BasicTransformerBlock:
            return BasicTransformerBlock(
                width, num_attention_heads, attention_head_dim, dropout=dropout, activation_fn="gelu"
            )

        depth = num_layers // 2
        self.patch_in = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, width)
        self.position = nn.Parameter(torch.zeros(1, tokens, width))
        self.in_blocks = nn.ModuleList(block() for _ in range(depth))
        self.mid_block = block()
        self.skip_joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))
        self.out_blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)
        self.patch_out = nn.Linear(width, patch_size**2 * out_channels)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.position, std=0.02)
        # After the trunk, as in the released code: the gates keep PyTorch's initial weights.
        scaling = SkipScaling(skip_scaling, skip_kappa, "skip", skip_reduction, skip_shared, skip_init_gate)
        self.skip_scaler = LongSkipScaler([tokens] * depth, None, scaling)

    def long_skips(self) -> list[LongSkip]:
        """The long skips, the outermost first."""
        return [
            LongSkip(width, i, block)
            for i, (width, block) in enumerate(
                zip(self.skip_scaler.features, reversed(self.out_blocks), strict=True)
            )
        ]

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, x)
        return block(x)

    def _tokens(self, sample: Tensor, timestep: Tensor | float | int, class_labels: Tensor | None) -> Tensor:
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        tokens = [self.time_proj(t).to(sample.dtype)[:, None]]
        if (self.class_embedding is None) != (class_labels is None):
            wanted = "no class_labels" if self.class_embedding is None else "class_labels"
            raise ValueError(f"This model takes {wanted} (num_class_embeds={self.config.num_class_embeds}).")
        if self.class_embedding is not None:
            tokens.append(self.class_embedding(class_labels)[:, None])
        tokens.append(self.patch_in(sample).flatten(2).transpose(1, 2))
        return torch.cat(tokens, dim=1) + self.position

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predicts what its training asked for.

        Args:
            sample: (B, in_channels, H, W) with H = W = `sample_size`.
            timestep: one for all or (B,).
            class_labels: (B,) int64, for a model with `num_class_embeds`.
            return_dict: whether to wrap the output.

        Returns:
            `UNet2DOutput` with `.sample` of shape (B, out_channels, H, W), or a tuple of that tensor.

        Raises:
            ValueError: images of another size, or class labels missing or unexpected.
        """
        size, patch = self.config.sample_size, self.config.patch_size
        if tuple(sample.shape[2:]) != (size, size):
            raise ValueError(f"This model takes images of {size}x{size}, got {tuple(sample.shape[2:])}.")
        x = self._tokens(sample, timestep, class_labels)
        skips = []
        for block in self.in_blocks:
            x = self._run(block, x)
            skips.append(x)
        x = self._run(self.mid_block, x)
        for join, block in zip(self.skip_joins, self.out_blocks, strict=True):
            i = len(skips)
            x = join(torch.cat([x, self.skip_scaler(i, skips.pop())], dim=-1))
            x = self._run(block, x)
        patches = self.patch_out(self.norm_out(x[:, self.extras :]))
        side = size // patch
        image = patches.reshape(len(sample), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        image = self.conv_out(image.reshape(len(sample), -1, size, size))
        return UNet2DOutput(sample=image) if return_dict else (image,)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
