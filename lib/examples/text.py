"""A small text to train on, character by character.

"Alice's Adventures in Wonderland" by Lewis Carroll (1865), in the public domain; the text of the Canterbury Corpus
(file alice29.txt), with its empty lines and line ends made regular.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """A text as numbers: token i is the i-th of `characters`."""

    characters: str
    tokens: Tensor

    @property
    def vocabulary(self) -> int:
        """How many different characters there are."""
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """The tokens (1, S) of a text. Raises ValueError for a character that the text never has."""
        unknown = sorted(set(text) - set(self.characters))
        if unknown:
            raise ValueError(f"{unknown} are not among the {self.vocabulary} characters of this text")
        return torch.tensor([[self.characters.index(c) for c in text]])

    def decode(self, tokens: Tensor) -> str:
        """The text of tokens (S,) or (1, S)."""
        return "".join(self.characters[t] for t in tokens.flatten().tolist())

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


def alice() -> Text:
    """The text that comes with the book: about 150,000 characters."""
    text = (Path(__file__).parent / "alice.txt").read_text("ascii")
    characters = "".join(sorted(set(text)))
    numbers = {c: i for i, c in enumerate(characters)}
    return Text(characters, torch.tensor([numbers[c] for c in text]))
