"""Max-pooling as Triton kernels, under Triton's interpreter on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_results_and_gradients_are_torchs():
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch on Linux")
    script = Path(__file__).parent / "interpreted_pool.py"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["equal"]
