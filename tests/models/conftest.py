import sys
from pathlib import Path

# The helpers that run scripts live beside the trainer's tests.
sys.path.append(str(Path(__file__).parents[1] / "training"))
