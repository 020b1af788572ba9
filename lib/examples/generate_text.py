"""Continues a text, with a GPT that is split over devices. However many there are, they write the same.

    python -m lib.examples.generate_text --weights FILE --prompt "Alice " --size 4                simulated devices
    torchrun --nproc-per-node 4 -m lib.examples.generate_text --weights FILE --prompt "Alice "    processes

FILE is what `train_gpt --save FILE` has written, or the weights of a GPT-2 from a hub, with their `config.json` and
`tokenizer.json` beside them: a .safetensors or .bin file, the index of many, or the folder.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lib import load_dense
from lib.devices import Group
from lib.examples.text import alice
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.generate import generate
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import read_gpt2
from lib.real.torchrun import launch


class Language(NamedTuple):
    """From a text to tokens (1, S), and from tokens (1, S) to a text."""

    encode: Callable[[str], Tensor]
    decode: Callable[[Tensor], str]


def main(arguments: list[str] | None = None) -> None:
    """Prints the prompt and what follows. Under torchrun every process comes here."""
    options = make_parser().parse_args(arguments)
    try:
        config, state = read_weights(options.weights)
        language = language_of(options.weights, config)
        prompt = language.encode(options.prompt)  # (1, S)
        launch(write, config, state, prompt, language, options, size=options.size)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"generate_text: {error}")


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


def language_of(weights: Path, config: GPTConfig) -> Language:
    """That of the tokenizer beside the weights; else the characters of the book's text, if they are as many.

    Raises ValueError when neither fits the vocabulary.
    """
    file = weights / "tokenizer.json" if weights.is_dir() else weights.with_name("tokenizer.json")
    if file.is_file():
        tokenizer = Tokenizer.from_file(str(file))
        if tokenizer.get_vocab_size() > config.vocabulary:
            raise ValueError(
                f"{file} has {tokenizer.get_vocab_size()} tokens, but the model knows {config.vocabulary}: it belongs "
                "to another model"
            )
        return Language(
            lambda text: torch.tensor([tokenizer.encode(text).ids]),
            lambda tokens: tokenizer.decode(tokens[0].tolist()),
        )
    text = alice()
    if config.vocabulary != text.vocabulary:
        raise ValueError(
            f"a vocabulary of {config.vocabulary} tokens needs a tokenizer, and {file} is not there: download it from "
            f"where the weights are. (Without one, tokens are the {text.vocabulary} characters of the book's text)"
        )
    return Language(text.encode, text.decode)


def write(
    group: Group,
    config: GPTConfig,
    state: Mapping[str, Tensor],
    prompt: Tensor,
    language: Language,
    options: argparse.Namespace,
) -> None:
    """The program of one device. Rank 0 prints."""
    model = GPT(config, group)
    load_dense(model, state, group)
    tokens = generate(model, prompt, options.count, options.temperature, options.top_k, options.seed)  # (1, S + count)
    if group.rank == 0:
        print(language.decode(tokens))


if __name__ == "__main__":
    main()
