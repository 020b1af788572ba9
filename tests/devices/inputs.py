"""Random inputs for the property tests: world sizes, shapes, dtypes and memory layouts."""

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.bool,
    torch.complex64,
]
LAYOUTS = ["contiguous", "transposed", "expanded", "every second", "offset"]
SIZES = st.integers(1, 6)


def use_repeatable_profile():
    """The same examples in every run: a red test stays red until the code is mended."""
    settings.register_profile(
        "book",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("book")


def random_tensor(shape, dtype, layout, generator):
    """Small whole numbers, so that a sum is exact in every dtype; in memory laid out as asked."""
    shape = tuple(shape)
    if layout == "transposed":
        return random_tensor(shape[::-1], dtype, "contiguous", generator).permute(*range(len(shape))[::-1])
    if layout == "expanded" and shape:
        return random_tensor((1, *shape[1:]), dtype, "contiguous", generator).expand(shape)
    if layout == "every second" and shape:
        return random_tensor((*shape[:-1], 2 * shape[-1]), dtype, "contiguous", generator)[..., ::2]
    if layout == "offset" and shape:
        return random_tensor((shape[0] + 3, *shape[1:]), dtype, "contiguous", generator)[3:]
    numbers = torch.randint(-9, 10, shape, generator=generator)
    if dtype == torch.bool:
        return numbers > 0
    if dtype.is_complex:
        return torch.complex(numbers.float(), torch.randint(-9, 10, shape, generator=generator).float())
    return numbers.to(dtype)


@dataclass
class Case:
    """What each of `size` devices brings to a collective: tensors equal in shape, except along `free`."""

    tensors: list[torch.Tensor]
    dim: int  # may be negative
    other_dim: int

    @property
    def size(self):
        return len(self.tensors)


@st.composite
def cases(draw, free=False, dtypes=DTYPES):
    """A world size, and one tensor for each device. With `free`, their lengths along `dim` differ."""
    size = draw(SIZES)
    shape = draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    other_dim = draw(st.integers(-len(shape), len(shape) - 1))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensors = []
    for _ in range(size):
        own = list(shape)
        if free:
            own[dim] = draw(st.integers(0, 5))
        tensors.append(random_tensor(own, dtype, draw(st.sampled_from(LAYOUTS)), generator))
    return Case(tensors, dim, other_dim)
