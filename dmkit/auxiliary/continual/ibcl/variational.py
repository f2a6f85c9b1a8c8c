"""Variational inference of a network's weights, as a task of the trainer.

loss = mean NLL + kl_weight / N · KL(q || prior),   which is -ELBO / N whatever the batch

z = x μ + sqrt(x² σ²) ε,  ε ~ N(0, 1)     local reparameterisation (Kingma et al. 2015, arXiv:1506.02557)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from ....training.part import TrainedPart
from ....training.trainer import Step, Task
from .gaussians import Gaussian

LAYERS = (nn.Linear, nn.Conv2d)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


class GaussianLayer(nn.Module):
    """A `Linear` or `Conv2d` whose weights are Gaussian; every call draws its outputs anew.

    Args:
        layer: what it stands for.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d):
        super().__init__()
        if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
            raise ValueError(f"Convolutions padded by {layer.padding_mode!r} are not supported.")
        self.names = [name for name, _ in layer.named_parameters()]
        for name, parameter in layer.named_parameters():
            self.register_parameter(f"{name}_loc", nn.Parameter(parameter.detach().clone()))
            self.register_parameter(f"{name}_rho", nn.Parameter(torch.zeros_like(parameter)))
        self.settings: dict[str, Any] = {}
        self.apply_to: Callable[..., Tensor] = F.linear
        if isinstance(layer, nn.Conv2d):
            self.apply_to = F.conv2d
            self.settings = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}

    def moments(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """loc and ρ of a parameter, σ = softplus(ρ)."""
        return getattr(self, f"{name}_loc"), getattr(self, f"{name}_rho")

    def forward(self, x: Tensor) -> Tensor:
        found = {name: self.moments(name) for name in self.names}
        locs = [found[name][0] if name in found else None for name in ("weight", "bias")]
        squares = [F.softplus(found[n][1]).square() if n in found else None for n in ("weight", "bias")]
        mean = self.apply_to(x, *locs, **self.settings)
        variance = self.apply_to(x.square(), *squares, **self.settings)
        # ε is one number for each example and output. Processes must draw different ones, and do: the trainer
        # seeds the global generator by rank. The same ε on two of them would tie their examples together:
        # the gradient would still have no bias, but the average over processes would be noisier.
        # The slope of the root at 0 is infinite: where all inputs are 0 it would make NaN.
        return mean + variance.clamp_min(1e-12).sqrt() * torch.randn_like(mean)


def gaussian_network(module: nn.Module) -> nn.Module:
    """A copy of a network with Gaussian weights.

    Raises:
        ValueError: trained parameters outside `Linear` and `Conv2d` layers, or none.
    """
    network = deepcopy(module)
    handled = {
        f"{name}.{p}".lstrip(".")
        for name, layer in network.named_modules()
        if isinstance(layer, LAYERS)
        for p, _ in layer.named_parameters()
    }
    if others := [name for name, _ in network.named_parameters() if name not in handled]:
        raise ValueError(f"Only Linear and Conv2d layers may have parameters here, not {', '.join(others)}.")
    if not handled:
        raise ValueError("The network has no parameter.")
    if isinstance(network, LAYERS):
        return nn.Sequential(GaussianLayer(network))
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LAYERS):
            network.set_submodule(name, GaussianLayer(layer))
    return network


class VariationalTask(Task):
    """Fits a Gaussian posterior to batches of `inputs` and `labels`.

    Args:
        module: the network whose weights are inferred; it is not changed.
        prior: Gaussian over its flattened parameters, in their order.
        examples: N, the number of examples in the data.
        kl_weight: 1 is the ELBO; N / B is what code without the scale of the minibatch amounts to.
        likelihood: outputs, labels -> mean negative log-likelihood.
        start: mean that the posterior starts from (D,); the prior's if None.
    """

    def __init__(
        self,
        module: nn.Module,
        prior: Gaussian,
        examples: int,
        *,
        kl_weight: float = 1.0,
        likelihood: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        start: Tensor | None = None,
    ):
        self.prior, self.examples = Gaussian(prior.loc.detach(), prior.scale.detach()), examples
        self.kl_weight, self.likelihood = kl_weight, likelihood
        self.network = gaussian_network(module)
        self._layers = [m for m in self.network.modules() if isinstance(m, GaussianLayer)]
        sizes = [layer.moments(name)[0].numel() for layer in self._layers for name in layer.names]
        self._write(prior.loc if start is None else start, prior.scale.clamp(max=1.0), sizes)
        self.modules = {"posterior": TrainedPart(self.network, dict(self.network.named_parameters()))}

    def _moments(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [layer.moments(name) for layer in self._layers for name in layer.names]

    @torch.no_grad()
    def _write(self, loc: Tensor, scale: Tensor, sizes: list[int]) -> None:
        for (mu, rho), a, b in zip(self._moments(), loc.split(sizes), scale.split(sizes), strict=True):
            mu.copy_(a.view_as(mu))
            rho.copy_(_inverse_softplus(b).view_as(rho))

    def prepare(self, device: torch.device) -> None:
        self.prior = Gaussian(self.prior.loc.to(device), self.prior.scale.to(device))
        self.network.to(device).train()

    def posterior(self) -> Gaussian:
        """What has been fitted, on the CPU."""
        loc, scale = self._flat()
        return Gaussian(loc.detach().cpu(), scale.detach().cpu())

    def _flat(self) -> tuple[Tensor, Tensor]:
        moments = self._moments()
        loc = torch.cat([mu.reshape(-1) for mu, _ in moments])
        return loc, torch.cat([F.softplus(rho).reshape(-1) for _, rho in moments])

    def divergence(self) -> Tensor:
        """KL(q || prior), over all weights."""
        q, p = Normal(*self._flat()), Normal(self.prior.loc, self.prior.scale)
        return kl_divergence(Independent(q, 1), Independent(p, 1))

    def training_step(self, batch: Mapping[str, Any], step: Step) -> dict[str, Tensor]:
        nll = self.likelihood(self.modules["posterior"](batch["inputs"]), batch["labels"])
        return {"nll": nll, "kl": self.kl_weight / self.examples * self.divergence()}

    def settings(self) -> dict[str, Any]:
        return {"kl_weight": self.kl_weight, "examples": self.examples}

    def save(self, folder: Path, modules: Mapping[str, nn.Module]) -> None:
        modules["posterior"].save_pretrained(folder / "posterior")  # type: ignore[operator]
