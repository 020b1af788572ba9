"""What to say to errors that a program raises because no GPU is there."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from linecache import getline

KERNEL = "It needs a kernel for GPUs. GPUs are only pretended here: take the program's path for the CPU, if it has one"
# A pattern in the text of an error, and what helps.
HINTS = (
    (
        r"No module named '(triton|flash_attn|apex|transformer_engine|xformers|bitsandbytes|cupy|deep_gemm)",
        "This package is made of kernels for GPUs (CUDA or Triton), which cannot run here: GPUs are only pretended. "
        "Take the program's path without it",
    ),
    (r"CUDA_HOME|nvcc|CUDAExtension|active drivers|from the 'CUDA' backend|libcuda", KERNEL),
    (
        r"Cannot access accelerator device",
        'A number alone names no device here. In place of torch.device(0) say torch.device("cuda", 0): the same device',
    ),
    (r"not linked with support for cuda|Torch not compiled with CUDA|Found no NVIDIA driver|No CUDA GPUs", KERNEL),
    (r"in CPU autocast|CPU Autocast", "Autocast runs on the CPU here, with the CPU's list of types"),
)
ON_CPU = (
    "GPUs are only pretended here: a tensor that was moved to cuda lies on the CPU. Its `.device` says cpu, and its "
    "`.is_cuda` says False. A program that insists on cuda stops here; leave this check out"
)


@contextmanager
def hints() -> Iterator[None]:
    """An error that comes from inside says what it has to do with pretended GPUs, if anything."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        for pattern, hint in HINTS:
            if re.search(pattern, text):
                error.add_note(hint)
                break
        else:
            if re.search(r"\.device\b|is_cuda|get_device\(", f"{text}\n{_line(error)}"):
                error.add_note(ON_CPU)
        raise


def _line(error: Exception) -> str:
    """The line of code that raised."""
    at = error.__traceback__
    while at.tb_next is not None:
        at = at.tb_next
    return getline(at.tb_frame.f_code.co_filename, at.tb_lineno)
