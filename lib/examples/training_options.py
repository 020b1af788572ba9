"""The options of `train_gpt`, and all that can be known to be wrong with them before a device starts."""

import argparse
from functools import partial
from pathlib import Path

import torch

from lib.examples import checkpoint
from lib.examples.recipe import Recipe
from lib.examples.text import Bytes, Characters, Pieces, Text, alice_text, coded, read_text
from lib.real.torchrun import devices

EVERY, VOCABULARY = 100, 1024  # steps between checkpoints; pieces of --tokens bpe


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options and their defaults."""
    parser = argparse.ArgumentParser(
        "train_gpt", description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    number = partial(parser.add_argument, type=at_least_one, metavar="N")
    number("--size", help="devices to simulate (4); under torchrun they are its processes")
    number("--data-parallel", default=1, help="replicas of the model (%(default)s); the devices of each split it")
    number("--pipeline-parallel", default=1, help="stages of a replica; micro-batches from --accumulate (%(default)s)")
    number("--steps", default=100, help="(%(default)s)")
    number("--layers", default=2, help="(%(default)s)")
    number("--hidden", default=64, help="(%(default)s)")
    number("--heads", default=4, help="(%(default)s)")
    number("--batch", default=16, help="texts in a step, for all replicas together (%(default)s)")
    number("--length", default=64, help="tokens of a text, and so the positions of the model (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.01, help="the highest learning rate (%(default)s)")
    parser.add_argument("--clip", type=float, metavar="NORM", help="the largest norm of the gradient (any)")
    number("--accumulate", default=1, help="micro-batches of a step, one after another (%(default)s)")
    parser.add_argument("--seed", type=a_seed, default=0, help="of weights and batches (%(default)s)")
    parser.add_argument("--sequence-parallel", action="store_true", help="split texts, too, between the layers")
    parser.add_argument("--recompute", choices=("selective", "full"), help="in the backward, to save memory")
    parser.add_argument("--zero", type=int, choices=(0, 1, 2, 3), default=0, help="stage, over replicas (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16"), default="float32", help="(%(default)s)")
    parser.add_argument(
        "--no-master-weights", action="store_true", help="step bfloat16 itself, and lose what rounds to nothing"
    )
    parser.add_argument("--device", choices=("cpu", "cuda", "meta"), default="cpu", help="(%(default)s)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="in UTF-8, to train on (the book's)")
    parser.add_argument("--tokens", choices=("characters", "bytes", "bpe"), help="(characters; of your text, bytes)")
    number(
        "--vocabulary", default=VOCABULARY, help="of --tokens bpe, whose pieces are learned from the text (%(default)s)"
    )
    parser.add_argument("--validation", type=float, default=0.0, metavar="SHARE", help="of the text, its end (none)")
    parser.add_argument("--save", type=Path, metavar="FILE", help="a .safetensors file; config.json comes beside it")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="a folder for what a training can go on from")
    number("--every", default=EVERY, help="steps between checkpoints (%(default)s); there is one at the end, too")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="last",
        choices=("last", "if-any"),
        metavar="if-any",
        help="go on from the last one in --checkpoint DIR, on any devices; if-any: or begin, where there is none",
    )
    parser.add_argument("--unsaved", action="store_true", help="train on when a checkpoint cannot be written")
    return parser


def at_least_one(text: str) -> int:
    """An integer, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not an integer of at least 1")
    return int(text)


def a_seed(text: str) -> int:
    """An integer that PyTorch's generators take, for argparse."""
    if not text.removeprefix("-").isdecimal() or not -(2**63) <= int(text) < 2**64:
        raise argparse.ArgumentTypeError(f"{text} is not an integer from -2**63 to 2**64 - 1")
    return int(text)


def check(options: argparse.Namespace) -> None:
    """What can be known before a device starts. Raises ValueError, or OSError when there can be no such folder."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this PyTorch sees no GPU. Install PyTorch for CUDA, or take --device cpu")
    for name in ("save", "checkpoint"):
        if options.device == "meta" and getattr(options, name):
            raise ValueError(f"--{name}: on --device meta there are no weights. Train on cpu or cuda, or leave it out")
    idle = {  # options that would do nothing, and what they are for
        "--vocabulary": (options.vocabulary != VOCABULARY and options.tokens != "bpe", "--tokens bpe"),
        "--every": (options.every != EVERY and not options.checkpoint, "--checkpoint DIR"),
        "--unsaved": (options.unsaved and not options.checkpoint, "--checkpoint DIR"),
        "--no-master-weights": (options.no_master_weights and options.dtype != "bfloat16", "--dtype bfloat16"),
        "--validation": (options.validation and options.device == "meta", "--device cpu or cuda"),
    }
    for name, (is_idle, purpose) in idle.items():
        if is_idle:
            raise ValueError(f"{name}: it does something with {purpose} alone. Add that, or leave {name} out")
    for name in ("save", "validation"):
        if options.pipeline_parallel > 1 and getattr(options, name):
            raise ValueError(
                f"--{name}: with --pipeline-parallel no device has all layers. Leave it out; --checkpoint works"
            )
    if options.text and options.tokens == "characters":
        raise ValueError("--tokens characters: only for the book's text. For your own take bytes or bpe")
    if not 0 <= options.validation < 1:
        raise ValueError(f"--validation {options.validation}: this is a share of the text, at least 0 and below 1")
    if options.resume and not options.checkpoint:
        raise ValueError("--resume: from which folder? Name it with --checkpoint DIR")
    if options.resume == "last" and checkpoint.latest(options.checkpoint) is None:
        raise ValueError(f"--resume: there is no complete checkpoint in {options.checkpoint}. Leave --resume out")
    if options.checkpoint and not options.resume and checkpoint.latest(options.checkpoint):
        raise ValueError(
            f"--checkpoint {options.checkpoint}: a training stands there. --resume it, or name another folder"
        )
    if options.checkpoint and options.checkpoint.is_file():
        raise ValueError(f"--checkpoint {options.checkpoint}: this is a file. Name a folder")
    if options.save:
        check_save(options.save)
    recipe_of(options).check(devices(options.size).size)


def check_save(file: Path) -> None:
    """Raises ValueError when the weights cannot be saved there."""
    if file.is_dir():
        raise ValueError(f"--save {file}: this is a folder. Name a file in it, such as model.safetensors")
    tokenizer = file.with_name("tokenizer.json")
    if tokenizer.exists() and not file.exists():
        raise ValueError(f"--save {file}: {tokenizer.name} beside it belongs to other weights. Take another folder")
    file.parent.mkdir(parents=True, exist_ok=True)


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The options that are not of model, text or files."""
    same = (
        "steps",
        "data_parallel",
        "pipeline_parallel",
        "batch",
        "length",
        "rate",
        "seed",
        "accumulate",
        "clip",
        "zero",
        "recompute",
    )
    return Recipe(
        **{name: getattr(options, name) for name in same},
        sequence_parallel=options.sequence_parallel,
        dtype=getattr(torch, options.dtype),
        master_weights=not options.no_master_weights,
    )


def text_of(options: argparse.Namespace) -> Text:
    """The text, in the tokens that were asked for."""
    text = read_text(options.text) if options.text else alice_text()
    kind = options.tokens or ("bytes" if options.text else "characters")
    if kind == "bpe":
        return coded(text, Pieces.learned(text, options.vocabulary))
    return coded(text, Bytes() if kind == "bytes" else Characters("".join(sorted(set(text)))))
