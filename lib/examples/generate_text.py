"""Continues a text, with a GPT that is split over devices. However many there are, they write the same.

    python -m lib.examples.generate_text --weights FILE --prompt "Alice " --size 4                simulated devices
    torchrun --nproc-per-node 4 -m lib.examples.generate_text --weights FILE --prompt "Alice "    processes

FILE is what `train_gpt --save FILE` has written, or the weights of a GPT-2 from a hub, with their `config.json` and
`tokenizer.json` beside them: a .safetensors or .bin file, the index of many, or the folder.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lib import load_dense
from lib.devices import Group
from lib.examples.text import Bytes, Coding, Pieces, alice
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import read_gpt2
from lib.real.one_voice import last_words
from lib.real.torchrun import launch


def main(arguments: list[str] | None = None) -> None:
    """Prints the prompt and what follows. Under torchrun every process comes here."""
    options = make_parser().parse_args(arguments)
    try:
        config, state = read_weights(options.weights)
        coding = coding_of(options.weights, config)
        prompt = torch.tensor([coding.numbers(options.prompt)], dtype=torch.int64)  # (1, S)
        launch(write, config, state, prompt, coding, options, size=options.size)
    except (OSError, ValueError) as error:
        sys.exit(last_words(f"generate_text: {error}", error))


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
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--size", type=int, metavar="N", help="devices to simulate (4); under torchrun, its processes")
    return parser


def read_weights(path: Path) -> tuple[GPTConfig, Mapping[str, Tensor]]:
    """The config and the dense weights. Raises FileNotFoundError, or ValueError that names the file."""
    try:
        return read_gpt2(path)
    except ValueError as error:
        raise ValueError(f"{path}, or the config.json beside it, does not hold a GPT-2: {error}") from error


def coding_of(weights: Path, config: GPTConfig) -> Coding:
    """The pieces of the tokenizer beside the weights. Without one, the book's characters or bytes, whichever are
    as many. Raises ValueError when nothing fits the vocabulary.
    """
    file = weights / "tokenizer.json" if weights.is_dir() else weights.with_name("tokenizer.json")
    if file.is_file():
        pieces = Pieces(Tokenizer.from_file(str(file)))
        if pieces.vocabulary > config.vocabulary:
            raise ValueError(
                f"{file} has {pieces.vocabulary} tokens, but the model knows {config.vocabulary}: it belongs to "
                "another model"
            )
        return pieces
    for coding in (alice().coding, Bytes()):
        if coding.vocabulary == config.vocabulary:
            return coding
    raise ValueError(
        f"a vocabulary of {config.vocabulary} tokens needs a tokenizer, and {file} is not there: download it from "
        f"where the weights are. (Without one, tokens are the {alice().vocabulary} characters of the book's text, or "
        "bytes)"
    )


def write(
    group: Group,
    config: GPTConfig,
    state: Mapping[str, Tensor],
    prompt: Tensor,
    coding: Coding,
    options: argparse.Namespace,
) -> None:
    """The program of one device. Rank 0 prints."""
    model = GPT(config, group)
    load_dense(model, state, group)
    tokens = generate(model, prompt, options.count, options.temperature, options.top_k, options.seed)  # (1, S + count)
    if group.rank == 0:
        print(coding.words(tokens[0].tolist()))


if __name__ == "__main__":
    main()
