"""The numbers as markdown."""

from itertools import chain

from lib.devices.aligned import aligned
from lib.devices.counts import counted

TARGETS = {  # times the dense time, by (work, how, devices, with the backward)
    ("MLP", "simulated", 4, True): 1.15,
    ("MLP", "simulated", 12, True): 1.35,
    ("GPT-2 block", "TP", 4, False): 1.15,
    ("GPT-2 block", "TP", 4, True): 1.08,
    ("GPT-2 block", "TP", 12, True): 1.20,
    ("GPT-2 block", "TP + SP", 4, True): 1.08,
    ("GPT-2 block", "TP + SP", 12, True): 1.20,
    ("experts", "simulated", 8, True): 1.30,
    ("GPT-2 small", "TP", 4, False): 1.15,
    ("GPT-2 small", "TP", 4, True): 1.15,
    ("GPT-2 in stages", "1F1B", 4, True): 1.15,
    ("attention", "ring, zigzag", 8, True): 1.30,
}
TARGET_INFERENCE = 1.15  # times the memory that the dense model takes
TARGET_COLLECTIVE = 50  # microseconds per device


def tables(found: dict) -> str:
    """All tables of one bench; `found` is what tests/bench.py gathers."""
    parts = [
        head(found),
        targets(found),
        ratios(found["layers"]),
        ratios(found["block"]),
        ratios(found["gpt"]),
        ratios(found["experts"]),
        ratios(found["context"]),
        ratios(found["pipeline"]),
        faults(found),
        collectives(found),
        clock(found),
        clock(found, "guests"),
        memory(found),
    ]
    return "\n\n".join(parts)


def head(found: dict) -> str:
    plan, machine = found["plan"], found["machine"]
    return (
        f"MLP {plan['width']} -> {plan['hidden']} -> {plan['width']}, GPT-2 block {plan['width']} wide with "
        f"{plan['heads']} heads, batch {plan['batch']} x {plan['tokens']}; GPT-2 with {plan['layers']} such layers and "
        f"{plan['vocabulary']} tokens, batch 1 x {plan['text']}; float32; torch {machine['torch']}, "
        f"{counted(machine['cores'], 'core')}, load {machine['load']:.1f} at the start; "
        f"{plan['rounds']} interleaved rounds, median (quartiles)."
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """Its columns stand under each other for who reads the markdown itself, words to the left."""
    words = [i for i in range(len(header)) if not any(row[i][:1].isdigit() for row in rows)]
    rule = ["---" if i in words else "--:" for i in range(len(header))]
    closed = [[*cells, ""] for cells in (header, rule, *rows)]  # an empty column, so that all lines end alike
    return "\n".join(f"| {line}" for line in aligned(closed, left=words, gap=" | "))


def spread(value: dict, digits: int = 2) -> str:
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"


def targets(found: dict) -> str:
    rows = []
    for row in chain(*(found[part] for part in ("layers", "block", "gpt", "experts", "context", "pipeline"))):
        wanted = TARGETS.get((row["work"], row["how"], row["devices"], row["backward"]))
        if wanted:
            how = "" if row["how"] == "simulated" else f" {row['how']}"
            direction = "forward + backward" if row["backward"] else "forward"
            what = f"{row['work']}{how} {direction}, {row['devices']} devices, {counted(row['threads'], 'thread')}"
            rows.append([*verdict(what, wanted, row["ratio"], 2, " x dense"), spread(row["cpu ratio"])])
    largest = max(row["devices"] for row in found["collectives"])
    for row in found["collectives"]:
        if row["devices"] == largest and row["what"] in ("all_reduce", "barrier"):
            what = f"{row['what']}, {row['devices']} devices"
            rows.append([*verdict(what, TARGET_COLLECTIVE, row["microseconds"], 1, " µs per device"), ""])
    dense, *others = found["inference"]
    for row in others:
        ratio, mib = row["peak"] / max(dense["peak"], 1), row["peak"] / 2**20
        met = "yes" if ratio <= TARGET_INFERENCE else "NO"
        reached = f"{ratio:.2f} x dense ({mib:.0f} MiB)"
        what = f"memory of GPT-2 small for inference, {row['devices']} devices"
        rows.append([what, f"<= {TARGET_INFERENCE} x dense", reached, met, ""])
    for row in found["memory"]:
        if row["devices"]:
            kept = f"{row['shared shards'] / 2**20:.1f} MiB more for {row['weights'] / 2**20:.1f} MiB of weights"
            met = "yes" if row["all shared"] else "NO"
            rows.append([f"shards under no_grad, {row['devices']} devices", "same memory", kept, met, ""])
    return table(["target", "wanted", "reached", "met", "cpu time / dense"], rows)


def verdict(what: str, wanted: float, reached: dict, digits: int, unit: str) -> list[str]:
    met = "yes" if reached["median"] <= wanted else "NO"
    return [what, f"<= {wanted}{unit}", f"{spread(reached, digits)}{unit}", met]


def by_work(rows: list[dict], cell) -> list[tuple[list[str], dict]]:
    """Rows of a table with one column per device count; cells by `cell(row)`."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        name = (row["work"], "fwd + bwd" if row["backward"] else "fwd", str(row["threads"]))
        lines.setdefault((*name, row["how"]), {})[row["devices"]] = cell(row)
    return [(list(name), cells) for name, cells in lines.items()]


def ratios(rows: list[dict]) -> str:
    """What every variant takes, times the dense time of the same round; and the dense time itself."""
    devices = sorted({row["devices"] for row in rows})
    header = ["time / dense", "pass", "threads", "how", *(f"{n} dev" for n in devices)]
    dense = {
        (row["work"], row["backward"], row["threads"]): row["milliseconds"]["median"]
        for row in rows
        if row["how"] == "dense"
    }
    lines = [
        [*name, *(cells.get(n, "") for n in devices)]
        for name, cells in by_work(rows, lambda row: spread(row["ratio"]))
        if name[-1] != "dense"
    ]
    note = "; ".join(
        f"{work} {'fwd + bwd' if backward else 'fwd'} at {threads}: {ms:.1f}"
        for (work, backward, threads), ms in dense.items()
    )
    return f"{table(header, lines)}\n\nDense, ms per step at so many threads: {note}."


def faults(found: dict) -> str:
    devices = found["plan"]["devices"]
    header = ["page faults per step", "pass", "threads", "how", *(f"{n} dev" for n in devices)]
    rows = [
        [*name, *(cells.get(n, "") for n in devices)]
        for name, cells in by_work(found["layers"], lambda row: f"{row['faults']['median']:,.0f}")
        if name[0] == "MLP"
    ]
    return table(header, rows)


def collectives(found: dict) -> str:
    cells = {(row["what"], row["devices"]): spread(row["microseconds"], 1) for row in found["collectives"]}
    sizes = sorted({size for _, size in cells})
    names = list(dict.fromkeys(what for what, _ in cells))
    rows = [[what, *(cells.get((what, size), "") for size in sizes)] for what in names]
    return table(["µs per device and call", *(f"{size} dev" for size in sizes)], rows)


def clock(found: dict, part: str = "clock") -> str:
    rows = [
        [
            row["what"],
            *(
                verdict("", row["target"], row["values"], 2, "")[1:]
                if row["target"]
                else ["", spread(row["values"]), ""]
            ),
        ]
        for row in found[part]
    ]
    return table(["meters and clock" if part == "clock" else part, "wanted", "reached", "met"], rows)


def memory(found: dict) -> str:
    dense = next(row for row in found["memory"] if not row["devices"])["peak"]
    rows = [["dense", f"{dense / 2**20:.1f}", "1.00"]]
    for row in found["memory"]:
        if row["devices"]:
            mib, ratio = row["peak"] / 2**20, row["peak"] / max(dense, 1)
            rows.append([counted(row["devices"], "device"), f"{mib:.1f}", f"{ratio:.2f}"])
    return table(["peak memory that forward + backward adds", "MiB", "x dense"], rows)
