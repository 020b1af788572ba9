"""What to do about errors that say it badly: a missing package, no network, too few GPUs."""

import re
import traceback
from collections.abc import Iterator

# Packages whose name in `import` is not the one that pip knows.
PIP = {"yaml": "pyyaml", "cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn", "skimage": "scikit-image",
       "dotenv": "python-dotenv", "hydra": "hydra-core", "google.protobuf": "protobuf", "pkg_resources": "setuptools",
       "git": "gitpython", "bs4": "beautifulsoup4", "tensorboard": "tensorboard", "attr": "attrs"}  # fmt: skip
KERNELS = ("triton", "flash_attn", "transformer_engine", "apex", "xformers", "bitsandbytes", "deep_gemm", "deep_ep",
           "cupy", "pycuda", "amp_C", "fused_layer_norm_cuda")  # fmt: skip
_NETWORK = re.compile(
    r"name resolution|Name or service not known|nodename nor servname|Max retries exceeded|Network is unreachable"
    r"|Connection refused|couldn't connect to|Couldn't reach|offline mode|Failed to establish a new connection"
    r"|[Tt]unnel connection failed|Proxy"
)
_ONCE = re.compile(r"already (been |is |was )?(initiali[sz]ed|set|called|registered|defined|instantiated|exists)|twice")
_OF_GPUS = r"'\w*(nccl|cuda|cudnn)\w*'"
_NOT_BUILT = re.compile(
    rf"module 'torch[\w.]*' has no attribute {_OF_GPUS}|cannot import name {_OF_GPUS} from 'torch", re.IGNORECASE
)
_GPU = re.compile(r"\b(cuda|gpus?|nccl|nvidia|hip|rocm)\b", re.IGNORECASE)


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what was under way; each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def hint(error: BaseException, no_gpu: bool = False) -> str | None:
    """A sentence, or None where the error speaks for itself. `no_gpu`: whether GPUs are pretended already."""
    errors = list(chain(error))
    for each in errors:
        if isinstance(each, ModuleNotFoundError) and each.name:
            return missing(each.name)
    if any(isinstance(e, OSError) and _NETWORK.search(f"{type(e).__name__}: {e}") for e in errors):
        return (
            "The program wants something from the network that it cannot reach, such as a data set or the weights of a "
            "model. Fetch it once by hand to where the program looks first, or point the program at data of your own"
        )
    if any(type(each).__name__ == "NoSuchProcess" for each in errors):
        return "os.getpid() gives each device a number of its own. The process that runs them all is psutil.Process()"
    if any(isinstance(e, AttributeError | ImportError) and _NOT_BUILT.search(str(e)) for e in errors):
        return (
            "This PyTorch is built for the CPU and has no such name, however many GPUs are pretended. Let the program "
            "ask for it only where it is there, by hasattr; nothing here would use it"
        )
    package = installed(error)
    if package not in (None, "torch") and _ONCE.search(str(error)):
        return (
            f"{package} keeps one state for the whole process, and another device has set it already. With --own "
            f"{package} each device imports it for itself"
        )
    if not no_gpu and any(_GPU.search(str(e)) for e in errors if isinstance(e, Exception | SystemExit)):
        return NO_GPU
    return None


def installed(error: BaseException) -> str | None:
    """The installed package whose code raised the error, or None."""
    frames = traceback.extract_tb(error.__traceback__)
    found = re.search(r".*/site-packages/(\w+)", frames[-1].filename) if frames else None
    return found and found[1]


NO_GPU = (
    "The program asks for GPUs. With --no-gpu it gets one for each device, pretended on the CPU; if it starts its own "
    "processes, --gpus 4 says how many it finds"
)


def missing(module: str) -> str:
    """What to do about a module that is not installed."""
    top = module.partition(".")[0]
    if top in KERNELS:
        return (
            f"{top} is made of GPU kernels, which simulated devices do not have: ask the program for its plain PyTorch "
            "path (often a flag of its own)"
        )
    name = PIP.get(module) or PIP.get(top) or top.replace("_", "-")
    return f"Install the package, in the environment that this Python is from: python -m pip install {name}"
