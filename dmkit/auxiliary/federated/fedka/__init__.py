"""FedKA trains a network by federated averaging for a new site that has inputs but no labels: clients match
the features of their own data to those of the site, and vote on its labels: Sun, Chong and Ochiai, *Feature
Distribution Matching for Federated Domain Generalization*, ACML 2022, arXiv 2203.11635.

Client k has (x_s, y_s), the server has the site's x_T; φ features, c classifier, q domain head, G the last
round's average. In a step of a client, with x_t drawn from x_T and α of (4):

    CE(c(φ_k(x_s)), y_s)                                                                          (1)
    + CE(q(R_α(φ_k(x_s))), 0) + CE(q(R_α(φ_k(x_t))), 1),   R_α reverses gradients, times α         (2)
    + α w MKMMD²(φ_k(x_s), φ(x_t)),   φ = φ_G in the paper, φ = φ_k where matching is local        (3)
    α(p) = 2/(1 + exp(-γ p)) - 1,   p the share of the training that is done                      (4)

and after each round

    G = Σ_k w_k θ_k                                                                               (5)
    v(x) = the class that most clients choose for x;   G' = G trained on α CE(G(x), v(x))          (6)
    Group Effect = Acc_T(G) - (1/K) Σ_k Acc_T(θ_k)                                                (7)

    federation = federate(network, clients, x_T, Settings(rounds=30), training, test=(x, y))
    federation.history[-1]["group_effect"]

`mmd` has (3), `functions` (2) and (4) to (7), `federation` the clients as a task of the trainer, `server` the
other side, `exchange` what lies between them: nothing, or real processes.
"""

from .exchange import Exchange, GlooExchange
from .federation import Federation, federate
from .functions import average_states, group_effect, majority_vote, ramp, reverse_gradient
from .mmd import MultiKernelMMD
from .networks import DomainNet
from .settings import Settings

__all__ = [
    "DomainNet",
    "Exchange",
    "Federation",
    "GlooExchange",
    "MultiKernelMMD",
    "Settings",
    "average_states",
    "federate",
    "group_effect",
    "majority_vote",
    "ramp",
    "reverse_gradient",
]
