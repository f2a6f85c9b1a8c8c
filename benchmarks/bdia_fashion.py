"""BDIA on the shipped `fashion` model: reconstruction of 64 held-out images, and few-step sampling.

Reconstruction: DDIM inversion, EDICT, and BDIA at gamma 0.5 / 0.94 / 1 / 1 bit-exact, at 10, 20, 50, 100
steps, with the network in float32 and float16 (float16 kernels are slow on a CPU: the network's input and
output are rounded to half precision and its weights are half-precision values, the arithmetic between is
float32). Figures: worst absolute error, PSNR, network calls, peak memory above the loaded model.

Sampling: Fréchet distance of DDIM, BDIA (gamma 0.5 and 1; on a trailing grid unless it says leading) and
O-BELM at 10 and 20 network calls, three seeds.

    python benchmarks/bdia_fashion.py [reconstruction|sampling]
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import numpy as np
import psutil
import torch
from _results import Cells
from PIL import Image

from dmkit import zoo
from dmkit.metrics import max_abs_error, psnr
from dmkit.schedulers import invert, reconstruct

METHODS: dict[str, dict[str, Any]] = {
    "ddim inversion": {"method": "ddim"},
    "edict": {"method": "edict"},
    "bdia 0.5": {"gamma": 0.5, "max_amplification": float("inf")},
    "bdia 0.94": {"gamma": 0.94},
    "bdia 1": {"gamma": 1.0},
    "bdia 1 bit-exact": {"gamma": 1.0, "reversible": "bitwise"},
}
STEPS = (10, 20, 50, 100)
SAMPLERS = (
    "ddim",
    "obelm",
    "bdia@gamma=0.5,timestep_spacing=leading",
    "ddim@timestep_spacing=trailing",
    "bdia@gamma=0.5",
    "bdia@gamma=1.0",
)


def held_out() -> torch.Tensor:
    """The 64 test images that ship beside the model, (64, 1, 32, 32) in [-1, 1]."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in zoo.examples("fashion")])
    return torch.from_numpy(pixels).float()[:, None] / 127.5 - 1


class PeakMemory:
    """Largest resident memory above the level at the start, in MiB, polled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self._process, self._running = psutil.Process(), True
        self._floor = self.mib = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()
        return self

    def _poll(self) -> None:
        while self._running:
            self.mib = max(self.mib, self._process.memory_info().rss)
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()
        self.mib = (self.mib - self._floor) / 2**20


def round_to_half(module: torch.nn.Module) -> list[Any]:
    """Makes a float32 network see and say half-precision numbers only; returns the hooks."""
    # The input is rounded at the first layer: `invert` writes its start into the network's own input.
    return [
        module.conv_in.register_forward_pre_hook(lambda _, inputs: (inputs[0].half().float(),)),
        module.register_forward_hook(lambda _, __, out: type(out)(sample=out.sample.half().float())),
    ]


def reconstruction(network: str, name: str, steps: int) -> dict[str, Any]:
    pipe = zoo.load("fashion")
    pipe.set_progress_bar_config(disable=True)
    calls = [0]
    pipe.unet.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    if network == "float16":
        round_to_half(pipe.unet)
    images = held_out()
    with PeakMemory() as memory:
        try:
            pair = invert(pipe, latents=images, num_inference_steps=steps, **METHODS[name])
            inversion_calls, calls[0] = calls[0], 0
            latents = reconstruct(pipe, pair).latents
        except ValueError as error:
            return {"refused": str(error)}
    exact = bool(torch.equal(latents, images.double()))
    return {
        "max_abs": float(max_abs_error(latents, images.double())),
        "psnr_db": None if exact else round(float(psnr(latents, images.double())), 1),
        "bit_equal": exact,
        "std_of_code": round(float(pair.z_T.std()), 3),
        "calls": [inversion_calls, calls[0]],
        "peak_mib": round(memory.mib, 1),
    }


def main() -> None:
    torch.manual_seed(0)
    cells = Cells("bdia_fashion", {"images": 64, "what": __doc__.strip().splitlines()[0]})
    if sys.argv[1:] in ([], ["reconstruction"]):
        for network in ("float32", "float16"):
            for steps in STEPS:
                for name in METHODS:
                    key = f"reconstruction/{network}/{steps}/{name}"
                    cells.once(key, lambda n=network, m=name, s=steps: reconstruction(n, m, s))
    if sys.argv[1:] in ([], ["sampling"]):
        from _sampling import quality

        for seed in (1, 2, 3):
            for steps in (10, 20):
                for name in SAMPLERS:
                    key = f"sampling/{steps}/{name}/seed{seed}"
                    cells.once(key, lambda n=name, s=steps, k=seed: quality("fashion", n, s, seed=k))


if __name__ == "__main__":
    main()
