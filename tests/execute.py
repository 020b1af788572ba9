"""Execute every notebook in place and store its outputs in one normal form: `make outputs`.

Running it twice gives the same bytes, so a commit shows what really changed, and strict nbval passes on the result.
Cells that measure time never give the same twice: they have the tag "nbval-ignore-output", and what is stored of them
stays until their source changes.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
# Ids of live widgets are random; the text/html face beside them is what the page shows and what nbval compares.
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
MEASURED = "nbval-ignore-output"
KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def notebooks() -> list[Path]:
    return sorted([*ROOT.glob("*.ipynb"), *(ROOT / "chapters").glob("*.ipynb")])


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


def execute(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    measured = {}
    for count, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{count:03d}"  # Jupyter's ids are random
        if MEASURED in cell.metadata.get("tags", []) and cell.outputs:
            measured[cell.source] = cell.outputs
    NotebookClient(notebook, timeout=220, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        if cell.source in measured:
            cell["outputs"] = measured[cell.source]
    before = path.read_text("utf-8")
    after = normal_form(notebook)
    path.write_text(after, "utf-8")
    return f"{path.relative_to(ROOT)}: {'unchanged' if before == after else 'outputs stored'}"


if __name__ == "__main__":
    with ThreadPoolExecutor(2) as pool:
        for line in pool.map(execute, notebooks()):
            print(line)
    sys.exit(0 if notebooks() else "no notebook in chapters/")
