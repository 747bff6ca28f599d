"""What machine turns on for a while is as before afterwards, whatever happens meanwhile."""

import os

import pytest
import torch

from lead_ray import machine

STATES = {
    "single_thread": (torch.get_num_threads, 1),
    "quickest_convolutions": (lambda: torch.backends.cudnn.benchmark, True),
    "without_triton": (lambda: os.environ.get("LEAD_RAY_TRITON"), "0"),
}


@pytest.mark.parametrize("name", STATES)
def test_for_a_while(name):
    look, meanwhile = STATES[name]
    before = look()
    with pytest.raises(RuntimeError), getattr(machine, name)():
        assert look() == meanwhile
        raise RuntimeError
    assert look() == before


@pytest.mark.parametrize("before", [None, "1"])
def test_what_was_said_of_triton_is_said_again(monkeypatch, before):
    monkeypatch.delenv("LEAD_RAY_TRITON", raising=False)
    if before is not None:
        monkeypatch.setenv("LEAD_RAY_TRITON", before)
    with machine.without_triton():
        assert not machine.has_triton()
    assert os.environ.get("LEAD_RAY_TRITON") == before
