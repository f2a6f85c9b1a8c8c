"""Gradient rules: how the named losses of a step become the gradients of the parameters.

Any task with several losses can be trained with any of them: `Trainer(task, data, arguments, rule=PCGrad())`.
"""

from ...errors import unknown_name
from .base import FunctionRule, GradientRule, sum_losses
from .gram import GramRule
from .nash import NashMTL, nash_weights
from .orthogonal import OrthogonalProjection
from .pcgrad import PCGrad, pcgrad_weights
from .projection import SubspaceProjection
from .uncertainty import UncertaintyWeighting

RULES = ("sum", "uw", "pcgrad", "nash")


def build_rule(
    name: str, num_losses: int, *, update_every: int | None = None, learning_rate: float = 0.025
) -> GradientRule:
    """A rule by its name.

    Args:
        name: "sum", "uw" (uncertainty weighting), "pcgrad" or "nash".
        num_losses: how many losses the task has.
        update_every: of "pcgrad" and "nash"; by default 1 and 25.
        learning_rate: of the weights of "uw".

    Raises:
        ValueError: another name, or a number out of range.
    """
    if name not in RULES:
        raise unknown_name("gradient rule", name, RULES)
    if name == "uw":
        return UncertaintyWeighting(num_losses, learning_rate)
    if name == "sum":
        return sum_losses
    rule = PCGrad if name == "pcgrad" else NashMTL
    return rule() if update_every is None else rule(update_every)


__all__ = [
    "RULES",
    "FunctionRule",
    "GradientRule",
    "GramRule",
    "NashMTL",
    "OrthogonalProjection",
    "PCGrad",
    "SubspaceProjection",
    "UncertaintyWeighting",
    "build_rule",
    "nash_weights",
    "pcgrad_weights",
    "sum_losses",
]
