"""Training a GPT with experts, expert x data x tensor parallel: the program of one device, and it for real.

torchrun --nproc-per-node 4 -m lib.examples.train_experts --expert-parallel 2
"""

from argparse import ArgumentParser
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import clip_grads_with_norm_

from lib.command import run_command
from lib.devices import Group
from lib.examples.text import Text, alice
from lib.parallel.data.average import shard_batch
from lib.parallel.experts.balance import imbalance
from lib.parallel.experts.gradients import gradient_norm_on, sum_gradients
from lib.parallel.experts.grid import ExpertGrid
from lib.parallel.experts.model import ExpertGPT, ExpertGPTConfig
from lib.real.torchrun import launch


@dataclass(frozen=True)
class Progress:
    """Of every step: the mean loss of the text, the gradient's norm, and each expert's rows: (steps, layers, E)."""

    losses: list[float]
    norms: list[float]
    loads: torch.Tensor

    def imbalance(self) -> list[float]:
        """The largest load over the mean, of the layer where it is largest."""
        return [max(imbalance(rows[None]) for rows in layers) for layers in self.loads]


def train_experts(
    group: Group,
    config: ExpertGPTConfig,
    text: Text,
    steps: int,
    expert_parallel: int | None = None,
    tensor_parallel: int = 1,
    batch: int = 8,
    length: int = 32,
    rate: float = 1e-2,
    clip: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> tuple[Progress, ExpertGPT]:
    """Whatever the grid, the model and its updates are those of one device. Returns its progress, the same on all
    devices, and this device's GPT. Raises ValueError when the devices do not make such a grid."""
    grid = ExpertGrid.over(group, expert_parallel, tensor_parallel)
    torch.manual_seed(seed)  # every device draws the same dense weights, and keeps its pieces
    model = ExpertGPT(config, grid).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    losses, norms, loads = [], [], []
    for tokens, targets in text.batches(steps, batch, length, seed):
        tokens, targets = shard_batch(tokens, grid.batch), shard_batch(targets, grid.batch)  # (B/P, S)  Shard(0)
        share = len(tokens) / batch
        optimizer.zero_grad()
        loss = model(tokens, targets)
        (share * (loss + model.extra_loss())).backward()
        sum_gradients(model, grid)
        norms.append(gradient_norm_on(model, grid))
        clip_grads_with_norm_(model.parameters(), clip, norms[-1])
        optimizer.step()
        model.update_biases()
        losses.append(grid.batch.all_reduce(share * loss.detach()))  # ()  Partial -> Replicate
        loads.append(torch.stack([seen.wanted.sum(0) for seen in model.seen()]))
    return Progress([x.item() for x in losses], [x.item() for x in norms], torch.stack(loads)), model


def tell(group: Group, steps: int, expert_parallel: int | None, tensor_parallel: int) -> None:
    """Trains a small one on the book's text; rank 0 tells how it goes."""
    text = alice()
    config = replace(SMALL, vocabulary=text.vocabulary)
    progress, _ = train_experts(group, config, text, steps, expert_parallel, tensor_parallel, dtype=torch.float64)
    if group.rank == 0:
        for step, (loss, uneven) in enumerate(zip(progress.losses, progress.imbalance(), strict=True)):
            print(f"step {step}  loss {loss:.12f}  busiest expert {uneven:.2f} x the mean", flush=True)


SMALL = ExpertGPTConfig(2, 32, 4, positions=32, experts=8, k=2, deviation=0.1, balance=0.01)


def main(words: list[str] | None = None) -> None:
    """Simulates 4 devices, or is one of those that torchrun started."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--expert-parallel", type=int, default=None, help="by how many devices the experts are divided")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="by how many devices each expert is cut")
    chosen = parser.parse_args(words)
    launch(tell, chosen.steps, chosen.expert_parallel, chosen.tensor_parallel)


if __name__ == "__main__":
    run_command(main)
