"""NASA and NAG as a guider of Diffusers' modular pipelines; the equations are in `dmkit.attention.steering`.

pipe.update_components(guider=NegativeAwaySteer(scale=0.2))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from ..attention.layers import SteeredLayers
from ..attention.steering import Steering, join_tokens

# What modular pipelines call a denoiser's text and its mask.
TEXTS = ("prompt_embeds", "encoder_hidden_states")
MASKS = ("encoder_attention_mask",)


class NegativeAwaySteer(BaseGuidance):
    """Steers the denoiser's attention away from the negative prompt: one call a step.

    Diffusers' blocks make negative embeddings only for guiders of two conditions, so this one counts two
    though it asks for one prediction. An empty negative prompt is a prompt here; for none give scale 0.
    Blocks that run a ControlNet hand it the same text unsteered and are not supported.

    Args:
        scale: α of NASA, φ of NAG; 0 is the plain model.
        mode: `nasa` or `nag`.
        tau: NAG's bound on how much longer a steered answer may be, at least 1.
        blend: NAG's part of the steered answer, in (0, 1].
        start: part of the steps after which it begins, in [0, 1).
        stop: part of the steps after which it ends, in [start, 1].
        enabled: False for a guider that does nothing (SDXL's blocks enable any guider; give scale 0 there).

    Raises:
        ValueError: values out of range.
    """

    _input_predictions = ["pred_cond"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        scale: float = 0.2,
        mode: str = "nasa",
        tau: float = 2.5,
        blend: float = 0.375,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ):
        super().__init__(start, stop, enabled)
        self.steering = Steering(mode=mode, scale=scale, tau=tau, blend=blend)
        self._layers: SteeredLayers | None = None

    @property
    def num_conditions(self) -> int:
        return 2 if self._enabled else 1

    @property
    def is_conditional(self) -> bool:
        return True

    def _is_active(self) -> bool:
        if not self._enabled:
            return False
        if self._num_inference_steps is None:
            return True
        start, stop = (int(part * self._num_inference_steps) for part in (self._start, self._stop))
        return start <= self._step < stop

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """The one batch of inputs: of each pair the conditional one, the text with the negative text behind.

        Args:
            data: by the denoiser's names, a tensor or a pair (conditional, unconditional).

        Raises:
            ValueError: no negative embeddings.
        """
        inputs = dict(data)
        if self._is_active():
            for name in (*TEXTS, *MASKS):
                pair = inputs.get(name)
                if not isinstance(pair, tuple) or pair[0] is None:
                    continue
                if len(pair) < 2 or pair[1] is None:
                    raise ValueError(f"There is no negative {name} to steer away from.")
                inputs[name] = (join_tokens(*pair), None)
                if name in TEXTS:
                    self.steering.num_prompt_tokens = pair[0].shape[1]
                    self.steering.num_negative_tokens = pair[1].shape[1]
        return [self._prepare_batch(inputs, 0, "pred_cond")]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """As `prepare_inputs`, with the names of the block state's fields in place of tensors."""
        found = {
            name: tuple(getattr(data, field, None) for field in fields)
            if isinstance(fields, tuple)
            else getattr(data, fields, None)
            for name, fields in input_fields.items()
        }
        return self.prepare_inputs({name: value for name, value in found.items() if value is not None})

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        if self._is_active():
            self._layers = SteeredLayers(denoiser, self.steering)
            self._layers.install()

    def cleanup_models(self, denoiser: nn.Module) -> None:
        if self._layers is not None:
            layers, self._layers = self._layers, None
            try:
                layers.check()
            finally:
                layers.remove()

    def __call__(self, data: list[Any]) -> GuiderOutput:
        (prediction,) = data
        return self.forward(prediction.noise_pred)

    def forward(self, pred_cond: Tensor) -> GuiderOutput:
        return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
