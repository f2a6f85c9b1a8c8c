"""Chooses the features whose prediction is least bad in the worst case when named mechanisms change between
places, with a worst-case risk for each choice: Liu et al., *Which Invariance Should We Transfer? A Causal
Minimax Learning Approach*, ICML 2023, arXiv 2107.01876.

Y is predicted from stable variables X_S and mutable ones X_M; only P(x_m | pa(x_m)) differ between
environments.

    f_{S'}(x_{S'}, x_M) = E[Y | x_{S'}, do(x_M)]                          stable for every S' ⊆ S
    R(S') = max over h of E[(Y - f_{S'})²],  X_m = h_m(Pa(m))             its worst-case risk
    Ch(Y) ∩ De(M ∩ Ch(Y)) \\ (M ∩ Ch(Y)) empty   ⇒  S' = S has the least
    S_i ~ S_j  ⇔  B(S_i) = B(S_j)                                         B the Markov boundary of Y in G_S

    chosen = select(data, graph, "y", mutable=["m"])
    chosen.features, chosen.rows, chosen.predict(new)

`graphs` has the condition, `classes` the search over ~, `finite` exact models, `intervening` worst cases from
data, `overlap` whether these support them, `selecting` all of it together, `learning` graphs from data.
"""

from .classes import EquivalenceClass, Separation, equivalence_classes, exhaustive_classes
from .finite import FiniteModel
from .graphs import Components, first_extension, graphical_condition, without_environment
from .intervening import Mechanisms, worst_case_risk
from .learning import learn_graph
from .overlap import overlap
from .selecting import OverlapError, Row, Selection, select

__all__ = [
    "Components",
    "EquivalenceClass",
    "FiniteModel",
    "Mechanisms",
    "OverlapError",
    "Row",
    "Selection",
    "Separation",
    "equivalence_classes",
    "exhaustive_classes",
    "first_extension",
    "graphical_condition",
    "learn_graph",
    "overlap",
    "select",
    "without_environment",
    "worst_case_risk",
]
