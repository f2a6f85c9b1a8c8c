"""dmkit: a diffusion-model toolkit on Hugging Face Diffusers.

`import dmkit` registers the schedulers (so that saved pipelines that name them load again) and runs nothing
heavier; every other part is imported when it is first used.
"""

from . import schedulers

__version__ = "0.1.0"
__all__ = ["__version__", "schedulers"]
