"""Post-trains a language model on its own wrong solutions, blaming the step from which it no longer finds to
the answer instead of the whole text; all that is needed is a check of answers: Setlur et al., *RL on
Incorrect Synthetic Data Scales the Efficiency of LLM Math Reasoning by Eight-Fold*, NeurIPS 2024, arXiv
2406.14532.

A solution is steps y_1 … y_L, r ∈ {0, 1} its answer's check, π̃ the policy that finishes prefixes, the best of
K samples of π_sft in the paper:

    Q_i = E[r of y_1 … y_i finished by π̃],   Q_L = r,   A_i = Q_i - Q_(i-1),   Q_0 = V(x)             (1)
    first pit c = the first i with the least Q_i                                                  (2)
    max_π E Σ_i log π(y_i | x, y_<i) exp(A_i / β),   at π ∝ π_sft exp(A/β)                        (3)
    h = β (log π/π_sft (chosen | p) - log π/π_sft (rejected | p)),   -log σ(h)                    (4)
    the same with P = σ(Q⁺ - Q⁻) in the place of 1:   -P log σ(h) - (1 - P) log σ(-h)             (5)

Pairs are (x, a right solution, ŷ_1 … ŷ_c of a wrong one), or next steps after the prefix that they share. (5)
over all pairs of next steps has the optimum of (3).

`solutions` cuts and checks texts, `sampling` asks a model, `values` has (1) and (2), `pairs` makes the data,
`losses` (3) to (5), `tasks` trains; `arithmetic` has problems and a tiny model, `training` the whole.
"""

from .losses import advantage_weighted_loss, dpo_loss, sequence_logps
from .pairs import Pair, build_pairs, load_pairs, save_pairs
from .sampling import LanguageModel, Policy
from .solutions import NumericAnswerChecker, Problem, StepSplitter
from .tasks import AdvantageTask, PreferenceTask, SupervisedTask
from .values import StepValues, best_of, best_of_estimate, first_pit, step_advantages, step_values

__all__ = [
    "AdvantageTask",
    "LanguageModel",
    "NumericAnswerChecker",
    "Pair",
    "Policy",
    "PreferenceTask",
    "Problem",
    "StepSplitter",
    "StepValues",
    "SupervisedTask",
    "advantage_weighted_loss",
    "best_of",
    "best_of_estimate",
    "build_pairs",
    "dpo_loss",
    "first_pit",
    "load_pairs",
    "save_pairs",
    "sequence_logps",
    "step_advantages",
    "step_values",
]
