"""A script as a reader writes it: trains, then writes a text with the weights, in the same processes."""

import sys

from lib.examples import generate_text, train_gpt

if __name__ == "__main__":
    file, *options = sys.argv[1:]
    train_gpt.main([*options, "--save", file])
    generate_text.main(["--weights", file, "--count", "20", "--temperature", "0.7"])
