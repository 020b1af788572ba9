"""A device's piece of a parameter, which cannot be taken for the whole.

A piece is 1-D. A layer that computed with it would mostly stop with a message about shapes, and sometimes (a gain, a
bias) quietly give another number. So a piece refuses, by its parameter's name, whatever needs the whole parameter, and
its gradient refuses what needs the whole gradient, such as a norm. What treats each element by itself works: loading,
copying, averaging weights, a step of SGD or Adam. `detach()` gives the plain tensor, to do with as one likes.
"""

from typing import Any

import torch
from torch import Tensor

from lib.parallel.zero.careful import Careful, Origin

# What only looks, or compares element by element.
_LOOKING = set(
    "__array__ __deepcopy__ __eq__ __format__ __hash__ __len__ __ne__ __reduce_ex__ __repr__ allclose data_ptr detach "
    "_has_compatible_shallow_copy_type dim element_size empty_like eq equal full_like get_device is_complex ndimension "
    "is_contiguous is_floating_point is_pinned is_same_size is_shared isclose isfinite isinf isnan ne nelement "
    "new_empty new_full new_ones new_tensor new_zeros numel numpy ones_like register_hook "
    "register_post_accumulate_grad_hook requires_grad_ retain_grad share_memory_ size storage_offset stride "
    "tolist untyped_storage zeros_like".split()
)
# Copies and casts: the result is no more the whole than the piece was.
_CASTING = set(".data bfloat16 clone conj contiguous cpu cuda double float half to type type_as".split())
_HARMLESS = _LOOKING | _CASTING
# Each element changes by itself, as if the whole changed. Random numbers are not among them: all devices draw the same.
_IN_PLACE = set(
    "__iadd__ __imul__ __ipow__ __isub__ __itruediv__ abs_ add_ addcdiv_ addcmul_ clamp_ clamp_max_ clamp_min_ copy_ "
    "constant_ detach_ div_ fill_ lerp_ mul_ nan_to_num_ neg_ ones_ pow_ round_ sign_ sqrt_ square_ sub_ zero_ "
    "zeros_".split()
)
_WITH_ANOTHER = set("__add__ __mul__ __rsub__ __sub__ __truediv__ add div lerp mul rsub sub".split())
_TURNING = {".T", ".H", ".mT", ".mH", ".real", ".imag"}  # attributes that compute
_OVER_ALL = set(
    "_foreach_max _foreach_norm all amax amin aminmax any count_nonzero dot linalg_norm linalg_vector_norm logsumexp "
    "max mean median min nanmean nansum norm prod quantile std sum var vector_norm".split()
)
_SCALER = "_amp_foreach_non_finite_check_and_unscale_"
_OF_ALL_DEVICES = _OVER_ALL | {_SCALER}


class Piece(Careful):
    """This device's elements of a parameter: (n_i,), Shard(0) of the flattened whole, maybe empty. It counts as a
    parameter (`isinstance(piece, nn.Parameter)`), and `origin` says of what."""

    _is_param = True  # how PyTorch marks parameters that have a class of their own

    @staticmethod
    def make(x: Tensor, origin: Origin, requires_grad: bool = True, of: Tensor | None = None) -> "Piece":
        """A piece in the memory of `x` (n_i,), with what is noted on the parameter `of`, such as `p.no_decay`."""
        piece = Tensor._make_subclass(Piece, x.detach(), requires_grad)
        if of is not None:
            vars(piece).update(vars(of))
        piece.origin = origin
        return piece

    def __deepcopy__(self, memo: dict[int, Any]) -> "Piece":
        memo[id(self)] = Piece.make(self.detach().clone(), self.origin, self.requires_grad)
        return memo[id(self)]

    def may(self, called: str, others: list[Tensor]) -> bool:
        """Whether `called`, with `others`, treats each element by itself."""
        if called in _HARMLESS or self.shape == self.origin.shape:
            return True
        if called.startswith("."):
            return called not in _TURNING
        if called.startswith(("_foreach_", "_fused_")):  # optimizers, all pieces at once
            return called not in _OVER_ALL
        if not all(x.shape == self.shape or x.numel() == 1 for x in others):
            return False
        if called in _IN_PLACE:
            return True
        recorded = torch.is_grad_enabled() and self.requires_grad
        # A tensor that fits the whole too, such as one number, might be meant for the whole.
        certain = any(isinstance(x, Careful) or not _broadcast(x.shape, self.origin.shape) for x in others)
        return called in _WITH_ANOTHER and certain and not recorded

    def like(self, called: str, result: Tensor) -> Tensor:
        """A cast piece is one, though no parameter; so is a piece's gradient."""
        if called == ".grad":
            return _become(result, PieceGradient, self.origin)
        if called in _CASTING:
            _become(result, Piece, self.origin)._is_param = False
        return result

    def instead(self, called: str) -> str:
        """What to do, for a message."""
        return (
            "The whole is there while the module that was sharded is called, and inside `with sharded.gathered():`. "
            "Initialize, and apply weight_norm and the like, before sharding; put checkpoint() around sharded layers, "
            "not inside; optimizers must treat each element by itself. piece.detach() is the plain piece"
        )


class PieceGradient(Careful):
    """The gradient of a piece: (n_i,), Shard(0)."""

    def may(self, called: str, others: list[Tensor]) -> bool:
        """Whether `called` needs no other device's elements."""
        of_two = called in ("max", "min") and bool(others)  # of each element by itself
        return self.origin.devices == 1 or called not in _OF_ALL_DEVICES or of_two

    def like(self, called: str, result: Tensor) -> Tensor:
        """A square or the like is a piece's too; so is where it is finite."""
        kept = result.is_floating_point() or result.is_complex() or called in ("isfinite", "isinf", "isnan")
        same = called != "detach" and result.shape == self.shape and kept
        return _become(result, PieceGradient, self.origin) if same else result

    def what(self) -> str:
        """Whose tensor this is, for a message."""
        return f"the gradient of {super().what()}"

    def instead(self, called: str) -> str:
        """What to do, for a message."""
        if called == _SCALER:
            return "An infinity elsewhere would go unnoticed: use ShardedGradScaler(group) in place of GradScaler()"
        return (
            "Of all devices' pieces together: gradient_norm(pieces, group), clip_gradients(pieces, group, max_norm). "
            "norm_type=math.inf gives the largest, and the norm is not finite where an element is not"
        )


class Former(Careful):
    """A parameter that has been cut, for whoever still holds it: an optimizer made too early, a tied layer."""

    def may(self, called: str, others: list[Tensor]) -> bool:
        """Looking is all."""
        return called in _LOOKING or called.startswith(".") and called not in _TURNING | {".grad", ".data"}

    def instead(self, called: str) -> str:
        """What to do, for a message."""
        return (
            "This is the parameter as it was before: make the optimizer after sharding, and let layers that share a "
            "parameter be sharded by one FullySharded(model, group, layers=[...])"
        )


def become_former(p: Tensor, origin: Origin) -> None:
    """From now on, whoever still holds `p` is told that it was cut."""
    _become(p, Former, origin)


def become_piece(p: Tensor, origin: Origin) -> None:
    """From now on, the parameter `p` (n_i,) is a piece."""
    _become(p, Piece, origin)


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape that a parameter has on one device, also when this device holds a piece of it.

    So weight decay for matrices alone is `[p for p in parameters if len(whole_shape(p)) >= 2]`, however many devices.
    """
    return parameter.origin.shape if isinstance(parameter, Piece) else parameter.shape


def _become(x: Tensor, kind: type, origin: Origin) -> Tensor:
    x.__class__, x.origin = kind, origin
    return x


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))
