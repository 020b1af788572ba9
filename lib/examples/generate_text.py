"""Continues a text, with a model that is split over devices. However many there are, they write the same.

    python -m lib.examples.generate_text --weights FILE --prompt "Alice " --size 4                simulated devices
    torchrun --nproc-per-node 4 -m lib.examples.generate_text --weights FILE --prompt "Alice "    processes

FILE is what `train_gpt --save FILE` has written, or the weights of a GPT-2 or of a Llama (Mistral, Qwen 2 and 3) from a
hub, with their `config.json` and `tokenizer.json` beside them: a .safetensors file, the index of many, or the folder;
of a GPT-2 also a .bin file. Of a Llama every device reads its own rows only.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lib import load_dense
from lib.command import run_command
from lib.devices import Group
from lib.examples.text import Bytes, Coding, Pieces, alice
from lib.examples.training_options import a_seed
from lib.parallel.gpt.files import read_json
from lib.parallel.gpt.generate import Writer, generate
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import read_gpt2
from lib.parallel.llama.model import Llama
from lib.parallel.llama.settings import KINDS, llama_config
from lib.parallel.llama.weights import load_llama
from lib.real.one_voice import last_words
from lib.real.torchrun import launch


def main(arguments: list[str] | None = None) -> None:
    """Prints the prompt and what follows. Under torchrun every process comes here."""
    options = make_parser().parse_args(arguments)
    try:
        vocabulary, part = read_model(options.weights)
        coding = coding_of(options.weights, vocabulary)
        prompt = torch.tensor([coding.numbers(options.prompt)], dtype=torch.int64)  # (1, S)
        launch(write, part, prompt, coding, options, size=options.size)
    except (OSError, ValueError) as error:
        sys.exit(last_words(f"generate_text: {error}", error))
    except KeyboardInterrupt:
        print("generate_text: interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell counts it


def make_parser() -> argparse.ArgumentParser:
    """The options and their defaults."""
    parser = argparse.ArgumentParser(
        "generate_text", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help="a file, or its folder")
    parser.add_argument("--prompt", default="Alice ", help="the text to continue (%(default)r)")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="tokens to add (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw only from the N likeliest tokens (all)")
    parser.add_argument("--seed", type=a_seed, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--size", type=int, metavar="N", help="devices to simulate (4); under torchrun, its processes")
    return parser


def read_model(path: Path) -> tuple[int, Callable[[Group], Writer]]:
    """The vocabulary, and what makes a device's part of the model. FileNotFoundError, or ValueError naming the file."""
    settings = path / "config.json" if path.is_dir() else path.with_name("config.json")
    try:
        if settings.is_file() and read_json(settings).get("model_type") in KINDS:
            return llama_config(settings).vocabulary, partial(llama, path)
        config, state = read_gpt2(path)
    except ValueError as error:
        raise ValueError(f"{path}, or the config.json beside it, does not hold a GPT-2 or a Llama: {error}") from error

    def gpt(group: Group) -> GPT:
        model = GPT(config, group)
        load_dense(model, state, group)
        return model

    return config.vocabulary, gpt


def llama(path: Path, group: Group) -> Llama:
    """One device's part, from its own rows of the files."""
    model = Llama(llama_config(path), group)
    load_llama(model, path)
    return model


def coding_of(weights: Path, vocabulary: int) -> Coding:
    """The pieces of the tokenizer beside the weights. Without one, the book's characters or bytes, whichever are
    as many. Raises ValueError when nothing fits the vocabulary.
    """
    file = weights / "tokenizer.json" if weights.is_dir() else weights.with_name("tokenizer.json")
    if file.is_file():
        pieces = Pieces(Tokenizer.from_file(str(file)))
        if pieces.vocabulary > vocabulary:
            raise ValueError(
                f"{file} has {pieces.vocabulary} tokens, but the model knows {vocabulary}: it belongs to another model"
            )
        return pieces
    for coding in (alice().coding, Bytes()):
        if coding.vocabulary == vocabulary:
            return coding
    raise ValueError(
        f"a vocabulary of {vocabulary} tokens needs a tokenizer, and {file} is not there: download it from "
        f"where the weights are. (Without one, tokens are the {alice().vocabulary} characters of the book's text, or "
        "bytes)"
    )


def write(
    group: Group, part: Callable[[Group], Writer], prompt: Tensor, coding: Coding, options: argparse.Namespace
) -> None:
    """The program of one device. Rank 0 prints."""
    model = part(group)
    tokens = generate(model, prompt, options.count, options.temperature, options.top_k, options.seed)  # (1, S + count)
    if group.rank == 0:
        print(coding.words(tokens[0].tolist()))


if __name__ == "__main__":
    run_command(main)
