"""What meters and the virtual clock cost, and what they make possible: a block traced, a thousand devices, any size."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.layers import dense_work, device_work
from bench.plan import Plan, progress, summary
from bench.rounds import time_simulated
from lib import GPT, Cluster, Group, copy_to, reduce_from
from lib import measure as measured
from lib.devices import Meters, algorithms, cluster
from lib.parallel.gpt.config import GPTConfig


class Uncounted(Meters):
    """Meters that count nothing: what is left of the time is not theirs."""

    def charge(self, rank, verb, traffic, calls=1):
        pass


def block(group: Group, batch: int, tokens: int, width: int, heads: int, device: str) -> None:
    """A GPT-2 block, forward and backward, heads and hidden layer over the devices of the group."""
    new = {"device": device, "requires_grad": True}
    qkv = torch.randn(3 * width // group.size, width, **new)
    out = torch.randn(width, width // group.size, **new)
    up = torch.randn(4 * width // group.size, width, **new)
    down = torch.randn(width, 4 * width // group.size, **new)
    scale = torch.ones(width, **new)
    x = torch.randn(batch, tokens, width, **new)

    h = copy_to(F.layer_norm(x, (width,), scale), group)
    parts = (h @ qkv.T).view(batch, tokens, 3, heads // group.size, width // heads).permute(2, 0, 3, 1, 4)
    a = F.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)
    x = x + reduce_from(a @ out.T, group)
    h = copy_to(F.layer_norm(x, (width,), scale), group)
    y: Tensor = x + reduce_from(F.gelu(h @ up.T) @ down.T, group)
    y.sum().backward()


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def metering(plan: Plan) -> list[float]:
    """Time of an MLP with meters over its time without, forward and backward on 4 devices."""
    dense, found = dense_work("MLP", plan), {Meters: [], Uncounted: []}
    for round_ in range(-plan.warm_up, plan.rounds):
        for meters in found:
            cluster.Meters = meters
            took = time_simulated(4, partial(device_work, "MLP"), dense, True, 3 * plan.steps).wall
            if round_ >= 0:
                found[meters].append(took)
    cluster.Meters = Meters
    return [a / b for a, b in zip(*found.values(), strict=True)]


def measure(plan: Plan) -> list[dict]:
    """One dict per question: what, the unit, its median and quartiles, and the target."""
    torch.set_num_threads(1)
    progress("  meters and clock ...")
    rows = [{"what": "MLP on 4 devices: with meters / without", "target": 1.05, "values": metering(plan)}]
    shape = (plan.batch, plan.tokens, plan.width, 16)  # 12 heads cannot be split over 8 devices
    traced = [seconds(lambda: Cluster(8, "H100").run(block, *shape, "cpu")) for _ in range(plan.rounds)]
    plain = [seconds(lambda: Cluster(8).run(block, *shape, "cpu")) for _ in range(plan.rounds)]
    rows.append({"what": "GPT-2 block on 8 devices with a trace, seconds", "target": 1.0, "values": traced})
    ratio = [a / b for a, b in zip(traced, plain, strict=True)]
    rows.append({"what": "the same, with a trace / without", "target": None, "values": ratio})
    gpt3 = [seconds(lambda: Cluster(8, "H100").run(block, 1, 2048, 12288, 96, "meta")) for _ in range(plan.rounds)]
    rows.append({"what": "GPT-3 layer on 8 devices on meta, seconds", "target": 1.0, "values": gpt3})
    progress(f"  GPT-3, {plan.meta_layers} layers on meta ...")
    config = replace(GPTConfig.preset("gpt3-175b"), layers=plan.meta_layers, dropout=0.1)
    tokens = torch.empty(1, config.positions, dtype=torch.long, device="meta")
    step = seconds(lambda: measured(lambda group: GPT(config, group), tokens, tokens, devices=8))
    what = f"GPT-3 with {plan.meta_layers} layers on 8 devices on meta, forward + backward, seconds"
    rows.append({"what": what, "target": 30, "values": [step]})
    many = max(plan.clusters)
    progress(f"  a ring all-reduce by hand on {many} devices ...")
    ring = seconds(lambda: Cluster(many).run(algorithms.ring, torch.ones(many)))
    what = f"ring by hand on {many} devices, {2 * (many - 1)} steps, seconds"
    rows.append({"what": what, "target": 60, "values": [ring]})
    each = 1e6 * ring / (many * 2 * (many - 1))
    rows.append({"what": "the same, microseconds per message", "target": None, "values": [each]})
    return [{**row, "values": summary(row["values"])} for row in rows]
