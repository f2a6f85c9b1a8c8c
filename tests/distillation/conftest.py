import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps its precision in a process-wide state; every test starts without it."""
    AcceleratorState._reset_state(reset_partial_state=True)
