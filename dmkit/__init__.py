"""dmkit: a diffusion-model toolkit on Hugging Face Diffusers.

`import dmkit` registers the schedulers and the models (so that saved pipelines that name them load again) and
runs nothing heavier; every other part is imported when it is first used.
"""

from . import models, schedulers

__version__ = "0.1.0"
__all__ = ["__version__", "models", "schedulers"]
