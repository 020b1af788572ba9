"""Execute notebooks and keep their outputs in one normal form.

Running it twice gives the same bytes, so a commit shows what really changed, and strict nbval passes on the result.
Cells that measure time never give the same twice: they have the tag "nbval-ignore-output", and what is stored of them
stays until their source changes, or the code that draws their picture.
"""

import json
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

from book.build.record import ROOT, code, pictures_changed, record_of

# Ids of live widgets are random; the text/html face beside them is what the page shows and what nbval compares.
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MEASURED = "nbval-ignore-output"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS = 220  # a slow machine needs a minute for a cell that trains
# Outputs are made with the simplest instructions that a processor has, and the tests compare them with what the best
# ones give: what depends on the reader's processor, the last digit of a sum, is seen by the next run of the tests.
SIMPLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two chapters share the cores, and teams of threads would wait for each other


def notebooks(root: Path = ROOT) -> list[Path]:
    return [*root.glob("*.ipynb"), *sorted((root / "chapters").glob("*.ipynb"))]


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def merged(outputs: list[dict]) -> list[dict]:
    """Neighboring pieces of one stream as one: where the kernel cuts the text is chance."""
    result = []
    for output in outputs:
        before = result[-1] if result else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            before["text"] = "".join(before["text"]) + "".join(output["text"])
        else:
            result.append(output)
    return result


def normal_form(notebook: dict) -> str:
    import nbformat

    notebook = json.loads(json.dumps(notebook))  # the caller's notebook stays as it is
    front = {key: value for key, value in notebook["metadata"].items() if key in ("book", "mystnb")}
    notebook["metadata"] = {**front, "kernelspec": KERNELSPEC, "language_info": {"name": "python"}}
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key in ("tags", "mystnb")}
        if cell["cell_type"] != "code":
            continue
        cell["outputs"] = merged(cell["outputs"])
        for output in cell["outputs"]:
            output.get("data", {}).pop(WIDGET_VIEW, None)
            if "metadata" in output:
                output["metadata"] = {}
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    text = nbformat.writes(nbformat.from_dict(notebook))  # splits texts into lines, as Jupyter stores them
    return json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def executed(path: Path) -> str:
    """The notebook `path` with fresh outputs, in normal form. Raises RuntimeError where a cell fails or warns."""
    import nbformat  # these take a second to load: only where something is executed
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    measured, redraw = {}, pictures_changed(path, notebook, record_of(path))
    for count, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{count:03d}"  # Jupyter's ids are random
        old_picture = redraw and "<svg" in json.dumps(cell.get("outputs", []))
        if MEASURED in cell.metadata.get("tags", []) and cell.outputs and not old_picture:
            measured[cell.source] = cell.outputs
    try:
        NotebookClient(
            notebook,
            timeout=SECONDS,
            resources={"metadata": {"path": str(path.parent)}},
            extra_arguments=["--log-level=ERROR"],  # else each kernel warns that it talks over a local port
        ).execute(env=os.environ | SIMPLE | ONE_THREAD)
    except CellExecutionError as error:
        raise RuntimeError(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from None
    for cell in code(notebook):
        if warned := [output.text for output in cell.outputs if output.get("name") == "stderr"]:
            raise RuntimeError(f"This cell writes to stderr:\n{cell.source}\n\n{''.join(warned)}")
        if cell.source in measured:
            cell["outputs"] = measured[cell.source]
    return normal_form(notebook)


def execute_all(stale: dict[Path, str], store: Callable[[Path, str], str], at_once: int = 2) -> bool:
    """Execute the notebooks `stale` (with the reason why), hand each to `store`; say what happens. True if all ran."""

    def one(item: tuple[int, tuple[Path, str]]) -> bool:
        number, (path, reason) = item
        here = f"[{number} of {len(stale)}] {path.stem}"
        print(f"{here}: executing, {reason}", flush=True)
        begin = perf_counter()
        try:
            said = store(path, executed(path))
        except RuntimeError as error:
            print(f"{here}: FAILED\n{error}", flush=True)
            return False
        print(f"{here}: {said} ({perf_counter() - begin:.0f} s)", flush=True)
        return True

    with ThreadPoolExecutor(at_once) as pool:
        return all(list(pool.map(one, enumerate(stale.items(), 1))))
