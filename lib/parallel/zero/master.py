"""Mixed precision: parameters of 2 bytes to compute with, and a copy of 4 bytes to step.

A step changes a weight by a thousandth of it or less, and bfloat16 has 8 bits: most steps would round to nothing. So
the optimizer steps a float32 copy, the master weights, and the parameters are rounded from it.
With Adam that makes 16 bytes per parameter: 2 (parameter) + 2 (gradient) + 4 + 4 + 4 (master, momentum, variance).
Micikevicius et al. 2018, arXiv 1710.03740, section 3.1; Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lib.parallel.sharding.named import named
from lib.parallel.zero.piece import Piece
from lib.parallel.zero.wrapped import Wrapped


class MasterWeights(Wrapped):
    """An optimizer for `parameters` of low precision: `make_optimizer` is given their copies in `dtype`.

    The gradients are copied to `dtype` for the time of the step: 4 bytes per parameter more, for that time.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        make_optimizer: Callable[[list[nn.Parameter]], Optimizer],
        dtype: torch.dtype = torch.float32,
    ):
        self.parameters = list(parameters)
        self.masters = [_master(p, dtype) for p in self.parameters]
        super().__init__(make_optimizer(self.masters))

    @property
    def _step_supports_amp_scaling(self) -> bool:
        raise TypeError(
            "GradScaler cannot reach the gradients of MasterWeights, which are of low precision until the step. "
            "bfloat16 needs no scale; for float16 keep float32 parameters, and compute under torch.autocast"
        )

    @property
    def stepped(self) -> list[nn.Parameter]:
        """What takes the step in the end."""
        return self.parameters

    @named
    @torch.no_grad()
    def step(self) -> None:
        """Steps the masters, and rounds them into the parameters. What was loaded or written into these since counts,
        as without masters."""
        for p, master in zip(self.parameters, self.masters, strict=True):
            master.copy_(torch.where(p.detach() == master.detach().to(p.dtype), master.detach(), p.detach()))
            master.grad = None if p.grad is None else p.grad.to(master.dtype)
        self.optimizer.step()
        for p, master in zip(self.parameters, self.masters, strict=True):
            p.copy_(master)
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the gradients of the parameters."""
        for p in self.parameters:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's, in which each parameter's state holds its master too."""
        state = self.optimizer.state_dict()
        kept = {n: state["state"].get(n, {}) | {"master": master.detach()} for n, master in enumerate(self.masters)}
        return state | {"state": kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse; the parameters are rounded from the masters."""
        kept = {n: dict(of_one) for n, of_one in state["state"].items()}
        for n, (p, master) in enumerate(zip(self.parameters, self.masters, strict=True)):
            master.copy_(kept[n].pop("master"))
            p.copy_(master)
        self.optimizer.load_state_dict(state | {"state": kept})


def _master(p: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    x = p.detach().to(dtype)
    master = Piece.make(x, p.origin) if isinstance(p, Piece) else nn.Parameter(x)
    vars(master).update(vars(p))  # what is noted on it, such as p.no_decay
    return master
