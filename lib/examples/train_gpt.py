r"""Trains a small GPT on the book's text or on yours, data x pipeline x tensor parallel, on the devices you name.

    python -m lib.examples.train_gpt --size 4 --data-parallel 2 --steps 20                    4 simulated devices
    torchrun --nproc-per-node 4 -m lib.examples.train_gpt --data-parallel 2 --steps 20        4 processes
    torchrun --nproc-per-node 4 -m lib.examples.train_gpt --data-parallel 2 --device cuda     4 GPUs
    python -m lib.examples.train_gpt --size 4 --data-parallel 2 --steps 20 --device meta      no numbers, only shapes

A recipe whose texts are made of words, in about 40 seconds of one core:

    python -m lib.examples.train_gpt --size 1 --tokens bpe --layers 3 --hidden 96 --steps 300 --rate 0.005 --clip 1 \
        --validation 0.1 --save words/model.safetensors
    python -m lib.examples.generate_text --weights words --temperature 0.6 --top-k 20 --seed 1
"""

import argparse
import hashlib
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lib.command import run_command
from lib.costs.zero import model_state
from lib.devices import Cluster, Group, Mesh, Meters
from lib.devices.counts import counted
from lib.examples import checkpoint
from lib.examples.log import Log, peak_flops
from lib.examples.small_training import gathered
from lib.examples.text import Pieces, Text
from lib.examples.trainer import Trainer
from lib.examples.training_options import check, make_parser, recipe_of, text_of
from lib.parallel.gpt.config import GPTConfig
from lib.parallel.gpt.model import GPT
from lib.parallel.gpt.weights import write_gpt2
from lib.parallel.recovery.lock import alone_in
from lib.real.one_voice import last_words
from lib.real.torchrun import devices

LINES = 20  # of progress


def main(arguments: list[str] | None = None) -> None:
    """Trains, then tells what was sent, and saves. Under torchrun every process comes here."""
    options = make_parser(__doc__).parse_args(arguments)
    try:
        check(options)
        run(options)
    except (OSError, ValueError) as error:
        sys.exit(last_words(f"train_gpt: {error}", error))
    except KeyboardInterrupt:
        print("train_gpt: interrupted", file=sys.stderr)
        sys.exit(130)  # as a shell counts it


def run(options: argparse.Namespace) -> None:
    """Three programs, one after the other: when the second has ended, the meters know what it sent."""
    text = text_of(options)
    config = GPTConfig(
        options.layers, options.hidden, options.heads, text.vocabulary, positions=options.length, deviation=0.1
    )
    train, validation = text.split(options.validation)
    for name, some in (("text", train), ("part for --validation", validation)):
        if len(some.tokens) <= options.length and (options.validation or some is train):
            raise ValueError(f"the {name} has {len(some.tokens)} tokens: take --length below that, or a longer text")
    machine = devices(options.size)
    with torch.device(options.device):
        peak = machine.run(peak_flops, isinstance(machine, Cluster), getattr(torch, options.dtype))[0]
        tested = validation if options.validation else None
        results = machine.run(learn_alone, repr(machine), peak, config, train, tested, options)
    machine.run(tell, results, machine.meters, text, options)


@dataclass(frozen=True)
class Learned:
    """What a device has after the training: its GPT, and its tensor-parallel weights if they are to be saved."""

    held: int
    nbytes: int
    model: GPT
    weights: dict[str, Tensor] | None

    def abroad(self) -> "Learned":
        """Other processes need none of it."""
        return Learned(self.held, self.nbytes, None, None)


def learn_alone(group: Group, *arguments: Any) -> Learned:
    """`learn`, while no other training writes to its folder."""
    folder = arguments[-1].checkpoint
    with alone_in(folder, group) if folder else nullcontext():
        return learn(group, *arguments)


def learn(
    group: Group,
    machine: str,
    peak: float | None,
    config: GPTConfig,
    text: Text,
    validation: Text | None,
    options: argparse.Namespace,
) -> Learned:
    """The program of one device: the training, step by step. Rank 0 prints."""
    recipe = recipe_of(options)
    trainer = Trainer(group, config, recipe)
    here, mesh = torch.get_default_device(), trainer.mesh
    if group.rank == 0:
        what = f"a GPT of {config.parameters:,} parameters, {options.dtype} on {options.device}"
        print(f"{machine}: {what}, {counted(options.data_parallel, 'replica')}", flush=True)
    done, fingerprint = 0, hashlib.sha256(text.tokens.numpy().tobytes()).hexdigest()[:16]
    if options.resume and checkpoint.latest(options.checkpoint) is not None:
        done, wrong = checkpoint.load(options.checkpoint, trainer, config, group, fingerprint)
        if group.rank == 0:
            for fault in wrong:
                print(f"not used: {fault}", flush=True)
            print(f"resumed after {done} of {recipe.steps} steps", flush=True)
    log = Log(config, recipe, peak)
    for step, batch in enumerate(text.batches(recipe.steps, recipe.batch, recipe.length, recipe.seed)):
        if step < done:
            continue
        # Drawn on the CPU, where the text is; trained with where the model is.
        loss, norm = trainer.step(*(x.to(here) for x in batch))
        loss = mesh.dp.all_reduce(loss)  # ()  Partial -> Replicate
        last = step == recipe.steps - 1
        if not loss.is_meta and (step % max(1, recipe.steps // LINES) == 0 or last):
            measured = log.line(step + 1 - done)
            log.pause()
            tested = (
                "" if validation is None else f"  validation {mesh.dp.all_reduce(trainer.evaluate(validation)):.4f}"
            )
            if group.rank == 0:
                print(f"step {step:4}  loss {loss:.8f}{tested}  norm {norm:.4f}  |  {measured}", flush=True)
            log.go_on()
        if not loss.is_meta and not math.isfinite(loss):
            raise ValueError(f"the loss of step {step} is {loss.item()}: take a lower --rate, or --clip 1")
        if options.checkpoint and ((step + 1) % options.every == 0 or last):
            log.pause()
            try:
                checkpoint.save(options.checkpoint, step + 1, trainer, config, group, fingerprint)
            except OSError as error:  # on all devices, whoever could not write
                if not options.unsaved:
                    raise
                if group.rank == 0:
                    print(f"not saved: {error}", flush=True)
            log.go_on()
    state = model_state(trainer.model, trainer.optimizer)
    weights = trainer.own_weights() if options.save else None
    held = sum(p.numel() for p in trainer.model.parameters())
    return Learned(held, state.total, trainer.model, weights)


def tell(group: Group, results: list[Learned], meters: Meters, text: Text, options: argparse.Namespace) -> None:
    """What each device held and sent, and the dense weights into the file. Rank 0 prints."""
    mine = results[group.rank]
    if group.rank == 0:
        print(
            f"each device holds {mine.held:,} parameters; with gradients and the optimizer's state, "
            f"{mine.nbytes:,} bytes"
        )
        print(meters)
    if options.save:
        replica = Mesh(group, dp=options.data_parallel, tp=group.size // options.data_parallel).tp
        whole = gathered(mine.weights, mine.model, replica)
        if group.rank == 0:
            write_gpt2(options.save, mine.model.config, whole)
            if isinstance(text.coding, Pieces):
                text.coding.tokenizer.save(str(options.save.with_name("tokenizer.json")))
            print(f"saved {options.save}")


if __name__ == "__main__":
    run_command(main)
