"""`make bench`: what the simulator costs, as ratios measured in one run, interleaved. Prints tables for a note.

    python tests/bench.py            well over ten minutes on two cores
    python tests/bench.py --quick    toy sizes, seconds: proves that the bench works, says nothing about speed

The work lies in tests/bench/. Each part runs in a fresh process: OpenMP keeps a team of workers per thread, and a peak
of memory never falls, so nothing may be left over from the part before.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict

from bench.plan import FULL, QUICK, progress
from bench.tables import tables


def part(name: str, **options: int) -> object:
    """Runs one part in a process of its own."""
    progress(f"{name} {options or ''}")
    command = [sys.executable, __file__, "--part", json.dumps({"name": name, **options})]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def quickly(jobs: list[tuple[str, dict]]) -> list[tuple[str, object]]:
    """All parts, four side by side, each in a fork of one process that has imported PyTorch: it is fresh enough to
    prove that the parts work. Threads that wait sleep: side by side, they would wait for cores more than for work."""
    os.environ["OMP_WAIT_POLICY"] = "passive"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lib", "lib.real.child", "torch._dynamo"])
    with ProcessPoolExecutor(4, context, max_tasks_per_child=1) as pool:
        running = [(name, pool.submit(run_part, QUICK, name, **options)) for name, options in jobs]
        return [(name, json.loads(json.dumps(one.result()))) for name, one in running]


def run_part(plan, name: str, **options: int) -> object:
    """Inside of the fresh process. The imports are late: the process that starts the parts must stay small."""
    if name == "layers":
        from bench.layers import measure
    elif name == "block":
        from bench.block import measure
    elif name == "gpt":
        from bench.gpt import measure
    elif name == "experts":
        from bench.experts import measure
    elif name == "context":
        from bench.context import measure
    elif name == "pipeline":
        from bench.pipeline import measure
    elif name == "inference":
        from bench.gpt import measure_inference as measure
    elif name == "collectives":
        from bench.collectives import measure
    elif name == "guests":
        from bench.guests import measure
    elif name == "clock":
        from bench.clock import measure
    elif name == "memory":
        from bench.memory import measure
    else:
        import torch

        return {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return measure(plan, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes, a few seconds")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the numbers instead of tables")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else FULL
    if chosen.part:
        print(json.dumps(run_part(FULL, **json.loads(chosen.part))))
        return

    machine = quickly([("machine", {})])[0][1] if chosen.quick else part("machine")
    machine["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine["load"] = os.getloadavg()[0]
    default = machine["threads"]
    jobs = [("layers", {"threads": n, "processes": n == default}) for n in sorted({default, 1, 2})]
    jobs += [("block", {"threads": n, "processes": n == 2}) for n in (1, 2)]
    jobs += [("gpt", {"threads": n}) for n in (1, 2)]
    jobs += [("experts", {"threads": n}) for n in (1, 2)]
    jobs += [("context", {"threads": 1})]
    jobs += [("pipeline", {"threads": n}) for n in (1, 2)]
    jobs += [("inference", {"devices": devices}) for devices in (0, *plan.in_gpt)]
    jobs += [
        ("collectives", {}),
        ("clock", {}),
        ("guests", {}),
        *(("memory", {"size": size}) for size in (0, *plan.in_memory)),
    ]
    # One after the other: side by side they would disturb each other.
    results = quickly(jobs) if chosen.quick else [(name, part(name, **options)) for name, options in jobs]
    found = {
        "plan": asdict(plan),
        "machine": machine,
        "layers": [row for name, rows in results if name == "layers" for row in rows],
        "block": [row for name, rows in results if name == "block" for row in rows],
        "gpt": [row for name, rows in results if name == "gpt" for row in rows],
        "experts": [row for name, rows in results if name == "experts" for row in rows],
        "context": [row for name, rows in results if name == "context" for row in rows],
        "pipeline": [row for name, rows in results if name == "pipeline" for row in rows],
        "inference": [row for name, row in results if name == "inference"],
        "collectives": next(rows for name, rows in results if name == "collectives"),
        "clock": next(rows for name, rows in results if name == "clock"),
        "guests": next(rows for name, rows in results if name == "guests"),
        "memory": [row for name, row in results if name == "memory"],
    }
    print(json.dumps(found) if chosen.json else tables(found))


if __name__ == "__main__":
    main()
