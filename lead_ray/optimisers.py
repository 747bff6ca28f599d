"""torch's optimisers, as quick to start as they should be."""

import inspect
from functools import cache

import torch


@cache
def never_compiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The optimiser without what torch puts around its methods for whoever compiles optimisers.

    That imports the compiler: two seconds of a core, in every process that trains and at every start of workers. Lost
    with it are wrappers around these methods by others, such as profilers, and pickling; state dicts are torch's own.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})
