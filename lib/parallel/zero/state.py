"""Loading the optimizer state of pieces, which PyTorch would do without a look at their shapes."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lib.devices import Group


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any], group: Group) -> None:
    """`optimizer.load_state_dict(state)`, after a look at the shapes, which PyTorch does not take.

    Raises ValueError when the state is of another number of parameters, or one of its tensors has another shape.
    """
    who = f"load_optimizer_state on rank {group.rank} of {group.size}"
    fix = "Load what this rank saved, with the same model on as many devices"
    parameters = [p for some in optimizer.param_groups for p in some["params"]]
    saved = sum(len(some["params"]) for some in state["param_groups"])
    if saved != len(parameters):
        raise ValueError(f"{who}: the state is of {saved} parameters, this optimizer steps {len(parameters)}. {fix}")
    for number, of_one in state["state"].items():
        for name, x in of_one.items():
            # A number, such as Adam's count of steps, has no dims whatever the parameter's shape.
            if isinstance(x, Tensor) and x.ndim and x.shape != parameters[number].shape:
                raise ValueError(
                    f"{who}: {name} of parameter {number} has the shape {tuple(x.shape)}, but this device steps "
                    f"a piece of shape {tuple(parameters[number].shape)}. {fix}"
                )
    optimizer.load_state_dict(state)
