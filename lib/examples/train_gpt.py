"""Trains a small GPT on the book's text, character by character, data x tensor parallel, on the devices you name.

python -m lib.examples.train_gpt --size 4 --data-parallel 2 --steps 20                    4 simulated devices
torchrun --nproc-per-node 4 -m lib.examples.train_gpt --data-parallel 2 --steps 20        4 processes
torchrun --nproc-per-node 4 -m lib.examples.train_gpt --data-parallel 2 --device cuda     4 GPUs
python -m lib.examples.train_gpt --size 4 --data-parallel 2 --steps 20 --device meta      no numbers, only shapes
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from lib import dense_state
from lib.devices import Group, Meters
from lib.examples.text import Text, alice
from lib.examples.training import train
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import write_gpt2
from lib.real.torchrun import devices

LINES = 20  # of progress


def main(arguments: list[str] | None = None) -> None:
    """Trains, then tells what was sent, and saves. Under torchrun every process comes here."""
    options = make_parser().parse_args(arguments)
    try:
        check(options)
        run(options)
    except (OSError, ValueError) as error:
        sys.exit(f"train_gpt: {error}")


def make_parser() -> argparse.ArgumentParser:
    """The options and their defaults."""
    parser = argparse.ArgumentParser(
        "train_gpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    number = partial(parser.add_argument, type=at_least_one, metavar="N")
    number("--size", help="devices to simulate (4); under torchrun they are its processes")
    number("--data-parallel", default=1, help="replicas of the model (%(default)s); the devices of each split it")
    number("--steps", default=100, help="(%(default)s)")
    number("--layers", default=2, help="(%(default)s)")
    number("--hidden", default=64, help="(%(default)s)")
    number("--heads", default=4, help="(%(default)s)")
    number("--batch", default=16, help="texts in a step, for all replicas together (%(default)s)")
    number("--length", default=64, help="of a text, and so the positions of the model (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.01, help="the highest learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (%(default)s)")
    parser.add_argument("--sequence-parallel", action="store_true", help="split texts, too, between the layers")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda", "meta"), default="cpu", help="(%(default)s)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="a .safetensors file; config.json comes beside it")
    return parser


def at_least_one(text: str) -> int:
    """An integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return int(text)


def check(options: argparse.Namespace) -> None:
    """What can be known before a device starts. Raises ValueError, or OSError when there can be no such folder."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no GPU. Install PyTorch for CUDA, or take --device cpu")
    if options.device == "meta" and options.save:
        raise ValueError("--save: on --device meta there are no weights. Train on cpu or cuda, or leave --save out")
    if options.save and options.save.is_dir():
        raise ValueError(f"--save {options.save}: this is a folder. Name a file in it, such as model.safetensors")
    if options.save:
        options.save.parent.mkdir(parents=True, exist_ok=True)


def run(options: argparse.Namespace) -> None:
    """Two programs, one after the other: when the first has ended, the meters know what it sent."""
    text = alice()
    config = GPTConfig(
        options.layers, options.hidden, options.heads, text.vocabulary, positions=options.length, deviation=0.1
    )
    machine = devices(options.size)
    with torch.device(options.device):
        results = machine.run(learn, str(machine), config, text, options)
    machine.run(tell, results, machine.meters, options)


def learn(
    group: Group, machine: str, config: GPTConfig, text: Text, options: argparse.Namespace
) -> tuple[int, GPT | None]:
    """How many parameters this device holds, and its GPT if it is a part of the first replica and to be saved."""

    def progress(step: int, loss: float) -> None:
        if step % max(1, options.steps // LINES) == 0 or step == options.steps - 1:
            print(f"step {step:4}  loss {loss:.8f}", flush=True)

    if group.rank == 0:
        what = f"a GPT of {config.parameters:,} parameters, {options.dtype} on {options.device}"
        print(f"{machine}: {what}, {options.data_parallel} replica(s)", flush=True)
    _, model = train(
        group,
        config,
        text,
        options.steps,
        options.data_parallel,
        batch=options.batch,
        length=options.length,
        rate=options.rate,
        sequence_parallel=options.sequence_parallel,
        seed=options.seed,
        dtype=getattr(torch, options.dtype),
        progress=progress,
    )
    wanted = options.save and group.rank < model.group.size
    return sum(p.numel() for p in model.parameters()), model if wanted else None


def tell(group: Group, results: list[tuple[int, GPT | None]], meters: Meters, options: argparse.Namespace) -> None:
    """On rank 0: what each device held and sent; and the dense weights into the file."""
    if group.rank != 0:
        return
    held, _ = results[0]  # pieces are equal
    nbytes = 4 * held * getattr(torch, options.dtype).itemsize
    print(f"each device holds {held:,} parameters; with gradients and AdamW's two moments, {nbytes:,} bytes")
    print(meters)
    if options.save:
        models = [model for _, model in results if model is not None]
        write_gpt2(options.save, models[0].config, dense_state(models))
        print(f"saved {options.save}")


if __name__ == "__main__":
    main()
