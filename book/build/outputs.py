"""`make outputs`: execute in place every chapter whose record is not true any more, and store outputs and record.

python -m book.build.outputs              what is stale
python -m book.build.outputs gpt for_real these, stale or not
python -m book.build.outputs --all        every chapter
"""

import argparse
import json
import sys
from pathlib import Path

from book.build.execute import execute_all, notebooks, read
from book.build.record import ROOT, record_of, why_stale, write


def store(path: Path, text: str) -> str:
    before = path.read_text("utf-8")
    if text != before:
        path.write_text(text, "utf-8")
    write(path, json.loads(text), record_of(path))
    return "outputs unchanged" if before == text else "outputs stored"


def main() -> int:
    arguments = argparse.ArgumentParser(description="Execute chapters and store their outputs.")
    arguments.add_argument("names", nargs="*", metavar="NAME", help="a chapter, as gpt: executed, stale or not")
    arguments.add_argument("--all", action="store_true", help="every chapter, stale or not")
    wanted = arguments.parse_args()
    chapters = {path.stem: path for path in notebooks()}
    names = [Path(name).stem for name in wanted.names]
    if unknown := set(names) - chapters.keys():
        print(f"no chapter {', '.join(sorted(unknown))}; there are {', '.join(chapters)}")
        return 1
    if names:
        stale = {chapters[name]: "named" for name in names}
    elif wanted.all:
        stale = dict.fromkeys(chapters.values(), "as every chapter")
    else:
        reasons = {path: why_stale(path, read(path), record_of(path)) for path in chapters.values()}
        stale = {path: reason for path, reason in reasons.items() if reason}
    print(f"{len(stale) or 'None'} of {len(chapters)} chapters to execute", flush=True)
    for record in (ROOT / "chapters" / "executed").glob("*.txt"):
        if record.stem not in chapters:
            record.unlink()  # of a chapter that is gone
    return 0 if execute_all(stale, store) else 1


if __name__ == "__main__":
    sys.exit(main())
