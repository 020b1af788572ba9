"""A text to train on, as numbers: its characters, its bytes, or pieces of words (BPE).

The text of the book is "Alice's Adventures in Wonderland" by Lewis Carroll (1865), in the public domain, as in the
Canterbury Corpus (file alice29.txt), with its empty lines and line ends made regular.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor


class Coding(Protocol):
    """How a text becomes numbers, and numbers a text."""

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""

    def numbers(self, text: str) -> list[int]:
        """The tokens of a text. Raises ValueError for what it cannot say."""

    def words(self, numbers: list[int]) -> str:
        """The text of tokens."""


@dataclass(frozen=True)
class Characters:
    """Token i is the i-th of `characters`."""

    characters: str

    @property
    def vocabulary(self) -> int:
        """How many different characters there are."""
        return len(self.characters)

    def numbers(self, text: str) -> list[int]:
        """Raises ValueError for a character that is not among them."""
        number_of = {c: i for i, c in enumerate(self.characters)}
        unknown = sorted(set(text) - number_of.keys())
        if unknown:
            raise ValueError(f"{unknown} are not among the {self.vocabulary} characters of this text")
        return [number_of[c] for c in text]

    def words(self, numbers: list[int]) -> str:
        """Character by character."""
        return "".join(self.characters[i] for i in numbers)


@dataclass(frozen=True)
class Bytes:
    """Token i is the byte i of the text in UTF-8: any text has its tokens."""

    vocabulary: int = 256

    def numbers(self, text: str) -> list[int]:
        """Letters of English have one byte, others up to four."""
        return list(text.encode())

    def words(self, numbers: list[int]) -> str:
        """Bytes that make no character are shown as one that says so."""
        return bytes(numbers).decode(errors="replace")


@dataclass(frozen=True)
class Pieces:
    """Tokens are the pieces of words that a tokenizer has learned."""

    tokenizer: Tokenizer

    @property
    def vocabulary(self) -> int:
        """How many different pieces there are."""
        return self.tokenizer.get_vocab_size()

    def numbers(self, text: str) -> list[int]:
        """Any text has its pieces, down to single bytes."""
        return self.tokenizer.encode(text).ids

    def words(self, numbers: list[int]) -> str:
        """Put together again."""
        return self.tokenizer.decode(numbers)

    @staticmethod
    def learned(text: str, vocabulary: int) -> "Pieces":
        """Byte-pair encoding: the most frequent pair becomes a new token, until there are `vocabulary`."""
        if vocabulary < 257:
            raise ValueError(
                f"a vocabulary of {vocabulary} pieces: it begins with the 256 bytes, so take more than that"
            )
        tokenizer = ByteLevelBPETokenizer()
        tokenizer.train_from_iterator([text], vocab_size=vocabulary, show_progress=False)
        return Pieces(Tokenizer.from_str(tokenizer.to_str()))


@dataclass(frozen=True)
class Text:
    """A text as numbers: `tokens` (n,), in a `coding`."""

    coding: Coding
    tokens: Tensor

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return self.coding.vocabulary

    def encode(self, text: str) -> Tensor:
        """The tokens (1, S) of a text. Raises ValueError for what the coding cannot say."""
        return torch.tensor([self.coding.numbers(text)], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (S,) or (1, S)."""
        return self.coding.words(tokens.flatten().tolist())

    def split(self, share: float) -> tuple["Text", "Text"]:
        """The text without its last part, and that part: `share` of the tokens, to be tested with."""
        keep = len(self.tokens) - round(share * len(self.tokens))
        return replace(self, tokens=self.tokens[:keep]), replace(self, tokens=self.tokens[keep:])

    def batches(self, count: int, batch: int, length: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """`count` times (tokens, targets), each (batch, length): pieces from random places, and what follows each
        token. The same for the same seed, on every device. Raises ValueError when the text is too short for it.
        """
        if length >= len(self.tokens):
            raise ValueError(
                f"pieces of {length} tokens do not fit into a text of {len(self.tokens)}: take shorter ones"
            )
        random = torch.Generator().manual_seed(seed)
        for _ in range(count):
            starts = torch.randint(len(self.tokens) - length, (batch,), generator=random, device="cpu")
            windows = torch.stack([self.tokens[start : start + length + 1] for start in starts.tolist()])
            yield windows[:, :-1], windows[:, 1:]


def alice_text() -> str:
    """The text that comes with the book: about 150,000 characters."""
    return (Path(__file__).parent / "alice.txt").read_text("ascii")


def alice() -> Text:
    """It, character by character."""
    text = alice_text()
    return coded(text, Characters("".join(sorted(set(text)))))


def coded(text: str, coding: Coding) -> Text:
    """`text` in `coding`."""
    return Text(coding, torch.tensor(coding.numbers(text), dtype=torch.int64))


def read_text(file: Path) -> str:
    """A text in UTF-8. Raises OSError when it cannot be read, ValueError when it is none or empty."""
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}") from error
    if not text:
        raise ValueError(f"{file} is empty")
    return text
