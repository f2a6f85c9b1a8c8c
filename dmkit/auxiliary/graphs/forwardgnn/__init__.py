"""ForwardGNN trains graph networks layer by layer: each has a loss and an optimiser of its own, and no
gradient crosses from one to another, so that memory does not grow with depth: Park et al., *Forward Learning
of Graph Neural Networks*, ICLR 2024, arXiv 2403.11004.

A layer is a convolution with ReLU, h_l = ReLU(conv_l(norm(h_{l-1}), edges)); rows of norm(h) have length 1.
Single-forward learning (`sf`) adds one node for each of K classes, joined to the training nodes of its class;
its output is what represents the class:

    logits = z[:N] z[N:]ᵀ / τ,   z = h_l;   loss_l = cross-entropy over training nodes            (1)
    prediction = argmax Σ_l softmax(logits_l)                                                     (2)

Forward-Forward learning compares true labels with each of K-1 wrong ones, which are appended to a node's
features (`ff-la`) or given by its edge to a class's node (`ff-vn`):

    g = Σ_j h_j²;   loss_l = softplus(θ - g_true) + mean over wrong labels of softplus(g_wrong - θ)   (3)
    prediction = argmax over classes c of Σ_l g_l, unlabelled nodes being given class c           (4)

Links are scored by s_ij = z_i · z_j, with cross-entropy (`link-ce`), or by g = Σ (z_i z_j)² with (3)
(`link-ff`). Top-down signals tell a layer what those above it made of the last step, without a gradient:

    "loss":   (1) of the mean of z and the normalised outputs of the layers above the next one    (5)
    "input":  conv_l reads [norm(h_{l-1}) | norm(h_{l+1})], above the last layer the known labels (6)

    model = ForwardGNN(64, 10, method="sf")
    fit(model, data, training)
    classes = scores(model, data).argmax(1)

`layers` has the convolutions, `labels` how labels become a part of the graph, `objectives` the losses (1) and
(3), `tasks` the training of layers, `predicting` (2) and (4), `backprop` the same layers trained end to end.
"""

from .labels import add_class_nodes, append_labels, wrong_labels
from .layers import GraphLayer, normalize
from .measuring import saved_for_backward
from .model import ForwardGNN
from .objectives import goodness_loss, objective
from .predicting import link_scores, scores
from .tasks import LayerTask, TopDownTask, fit

__all__ = [
    "ForwardGNN",
    "GraphLayer",
    "LayerTask",
    "TopDownTask",
    "add_class_nodes",
    "append_labels",
    "fit",
    "goodness_loss",
    "link_scores",
    "normalize",
    "objective",
    "saved_for_backward",
    "scores",
    "wrong_labels",
]
