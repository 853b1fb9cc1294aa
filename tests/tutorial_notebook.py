"""Runs docs/tutorial.ipynb; as a script it stores the outputs too: ``python tests/tutorial_notebook.py``."""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs/tutorial.ipynb"


def execute(folder: Path) -> nbformat.NotebookNode:
    """Run the notebook in ``folder``; progress and the name of the folder are left out of the outputs."""
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(folder)}}
    # The backend of the tests shows no pictures.
    pictures = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    NotebookClient(notebook, timeout=1800, coalesce_streams=True, resources=resources).execute(env=pictures)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:
                    output["text"] = output["text"].replace(f"{folder}/", "")
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        start = time.monotonic()
        done = execute(Path(name).resolve())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    nbformat.write(done, NOTEBOOK)
    sys.stdout.write(f"{time.monotonic() - start:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time\n")
