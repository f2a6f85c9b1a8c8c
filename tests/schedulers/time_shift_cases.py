"""Time-Shift written out with plain loops, to hold the schedulers against, and every class with its parent.

Nothing here uses the schedulers' own search or steps: candidates are tried one after the other, levels come
from a table of ᾱ or σ, and each solver is one line of its paper.
"""

import diffusers
import torch

import dmkit.schedulers

# class -> settings that its parent takes too
CLASSES = {
    "TimeShiftDDIMScheduler": {"clip_sample": False},
    "TimeShiftDDPMScheduler": {"clip_sample": False},
    "TimeShiftPNDMScheduler": {"skip_prk_steps": True},
    "TimeShiftDPMSolverMultistepScheduler": {},
    "TimeShiftUniPCMultistepScheduler": {},
    "TimeShiftDEISMultistepScheduler": {},
    "TimeShiftEulerDiscreteScheduler": {},
    "TimeShiftEDMEulerScheduler": {},
    "TimeShiftFlowMatchEulerDiscreteScheduler": {},
}
CONTINUOUS = {"TimeShiftEDMEulerScheduler", "TimeShiftFlowMatchEulerDiscreteScheduler"}
DISCRETE = [name for name in CLASSES if name not in CONTINUOUS]
PER_SAMPLE = [
    "TimeShiftDDIMScheduler",
    "TimeShiftDDPMScheduler",
    "TimeShiftFlowMatchEulerDiscreteScheduler",
]


def ours(name, **options):
    """A Time-Shift scheduler with the settings of `CLASSES`."""
    return getattr(dmkit.schedulers, name)(**{**CLASSES[name], **options})


def parent(name, **settings):
    return getattr(diffusers, name.removeprefix("TimeShift"))(**{**CLASSES[name], **settings})


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
V_0 = 0.05


def net(x, t):
    """The noise prediction for Gaussian images of variance V_0, bent a little; t is a number or (B,)."""
    t = torch.as_tensor(t, dtype=torch.float64).reshape(-1, *[1] * (x.ndim - 1)).clamp(0, 999)
    abar = torch.lerp(ABAR[t.floor().long()], ABAR[t.ceil().long()], t.frac())
    straight = x.double() * (1 - abar).sqrt() / (abar * V_0 + 1 - abar)
    return (straight + 0.03 * torch.tanh(x.double().roll(1, -1) + 0.002 * t)).to(x.dtype)


class Denoiser(torch.nn.Module):
    """`net` as a module, for hooks; keeps the timesteps that it got."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t):
        self.seen.append(torch.as_tensor(t).flatten().tolist())
        return net(x, t)


def sample(scheduler, x, steps, network=net, seen=None, **step_arguments):
    """A pipeline's loop; `seen` collects the timesteps that the network got."""
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)  # flow matching has neither
    for t in scheduler.timesteps:
        if seen is not None:
            seen.append(t.item())
        model_input = scale(x, t)
        x = scheduler.step(network(model_input, t), t, x, **step_arguments).prev_sample
    return x


def states(*variances, seed=5):
    """Start states of exactly these variances: around 1, so that labels fall inside their windows too."""
    x = randn(len(variances), 2, 4, 4, seed=seed).flatten(1)
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return (x * torch.tensor(variances, dtype=x.dtype).sqrt()[:, None]).view(-1, 2, 4, 4)


def image_variances(x):
    return [
        sum((v - sum(row) / len(row)) ** 2 for v in row) / (len(row) - 1) for row in x.flatten(1).tolist()
    ]


def search(variance, levels, centre, half):
    """Line 8 of Algorithm 3, one candidate after the other; the smallest of equals."""
    best = None
    for u in range(max(0, centre - half), min(len(levels) - 1, centre + half) + 1):
        if best is None or abs(variance - levels[u]) < abs(variance - levels[best]):
            best = u
    return best


def algorithm_3(x, tau, levels, base_step, window, cutoff, mode="label", scope="batch", network=net):
    """Returns the samples and the labels that the network got, one list of B of them a step.

    `base_step(x, e, start, end, i)` moves x from timesteps `start`, a list of B, to `end`, a list or None for
    the end of all noise.
    """
    batch, labels = len(x), None
    seen = []

    def choose(state, centre):
        variances = image_variances(state)
        if scope == "batch":
            variances = [sum(variances) / batch] * batch
        return [search(v, levels, centre, window // 2) for v in variances]

    for i, t in enumerate(tau):
        start = labels or [t] * batch
        end = [tau[i + 1]] * batch if i + 1 < len(tau) else None
        moves = end is not None and t > cutoff
        seen.append(start)
        e = network(x, torch.tensor(start))
        if mode == "level":
            x = base_step(x, e, start, choose(x, tau[i + 1]) if moves else end, i)
        else:
            x = base_step(x, e, start, end, i)
            labels = choose(x, tau[i + 1]) if moves else None
    return x, seen


def transfer(x, e, a_from, a_to):
    """The deterministic DDIM step between two ᾱ (B,)."""
    a_from, a_to = (a.view(-1, *[1] * (x.ndim - 1)) for a in (a_from, a_to))
    x0 = (x - (1 - a_from).sqrt() * e) / a_from.sqrt()
    return a_to.sqrt() * x0 + (1 - a_to).sqrt() * e


def at(abar, timesteps, batch, last=1.0):
    """ᾱ (B,) of a list of timesteps; `last` for None."""
    return torch.full((batch,), last, dtype=torch.float64) if timesteps is None else abar[timesteps]


def ddim_step(abar, last=1.0):
    return lambda x, e, start, end, i: transfer(x, e, at(abar, start, len(x)), at(abar, end, len(x), last))
