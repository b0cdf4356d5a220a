"""Notebooks executed with papermill on checked parameters: what `make run` does.

    python -m helpers.runner [--notebook NAME] [-p NAME VALUE ...] [--parameters FOLDER]
"""

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from helpers import checkpoints, parameters
from helpers.report import PROJECT

NOTEBOOKS = PROJECT / "notebooks"


def declared(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their default values, from its tagged cell.

    Raises ValueError where the notebook has no cell tagged `parameters`.
    """
    import nbformat

    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            values: dict[str, Any] = {}
            exec(compile(cell.source, str(notebook), "exec"), {}, values)  # literals only
            return values
    raise ValueError(f"{notebook.name}: no cell is tagged `parameters`")


def settings(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Check parameters for a notebook and return them.

    Raises ValueError where a name is not the notebook's or a value is of the wrong type.
    """
    known = declared(notebook)
    strangers = sorted(set(given) - set(known))
    if strangers:
        raise ValueError(f"{notebook.stem}: has no parameter {', '.join(strangers)}; "
                         f"it has {', '.join(known)}")
    try:
        parameters.check(**given)
    except ValueError as error:
        raise ValueError(f"{notebook.stem}: {error}") from None
    return given


def unpinned(dataset: str) -> str | None:
    """Say what to write where a data set is a Hub name without a pinned commit, else None.

    What `data.load` would say, before anything has run.
    """
    if "/" not in dataset or checkpoints.is_path(dataset):
        return None
    from helpers import data  # brings in the datasets library, which takes seconds

    name, revision = data.pinned(dataset)
    if checkpoints.is_commit(revision) or not data.on_hub(dataset):
        return None
    return (f"dataset: no folder {dataset} is here, and as a name on the Hub it needs its commit "
            f"(40 hex digits); run it alone with -p dataset {name}@COMMIT")


def from_file(place: Path, notebook: Path) -> dict[str, Any]:
    """Read the parameters of a notebook from a YAML file, or from FOLDER/NOTEBOOK.yml."""
    import yaml

    path = place / f"{notebook.stem}.yml" if place.is_dir() else place
    if not path.is_file():
        raise ValueError(f"{notebook.stem}: no parameter file {path}")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a list of `name: value` lines")
    return content


def execute(notebook: Path, given: dict[str, Any], folder: Path) -> str | None:
    """Execute one notebook into `folder`: the notebook, metrics.json and an HTML copy.

    Returns None, or one line on the error; the executed notebook then shows where it failed.
    """
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)
    result = folder / notebook.name
    failed = None
    try:
        papermill.execute_notebook(
            str(notebook), str(result), parameters=given,
            kernel_name="python3", language="python", cwd=str(PROJECT),
            progress_bar=sys.stderr.isatty())
    except papermill.PapermillExecutionError as error:
        failed = f"{error.ename}: {error.evalue}".splitlines()[0]
    except Exception as error:  # a dead kernel, a full disk: the other notebooks go on
        failed = f"{type(error).__name__}: {error}".splitlines()[0]
    if result.exists():
        page, _ = HTMLExporter().from_notebook_node(nbformat.read(result, as_version=4))
        aside = folder / f"{notebook.stem}.html.part"
        aside.write_text(page, encoding="utf-8")
        os.replace(aside, folder / f"{notebook.stem}.html")
    return failed


def source_digest(nb) -> str:
    """A digest of the source of all cells: outputs belong to the source they were made from."""
    text = "\0".join(f"{cell.cell_type}:{cell.source}" for cell in nb.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def keep_outputs(notebook: Path, executed: Path) -> None:
    """Put the outputs of an executed copy into the notebook itself, without run-time metadata."""
    import nbformat

    bar = "application/vnd.jupyter.widget-view+json"  # progress bars mean nothing afterwards
    nb = nbformat.read(executed, as_version=4)
    for cell in nb.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags" and v}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if bar not in o.get("data", {})]
    nb.metadata = nbformat.NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"}, executed_source=source_digest(nb))
    aside = notebook.with_suffix(".ipynb.part")
    nbformat.write(nb, aside)
    os.replace(aside, notebook)


def headline(folder: Path) -> str:
    """The notebook's own one-line result."""
    import json

    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8"))["headline"] if path.exists() else ""


def table(rows: list[tuple[str, ...]]) -> str:
    """Align rows of text; the first is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make run", description="Execute the notebooks.")
    parser.add_argument("--notebook", help="only this one, by name")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    parser.add_argument("--parameters", type=Path, help="a YAML file, or a folder of NOTEBOOK.yml")
    parser.add_argument("--output_dir", type=Path, default=PROJECT / "runs")
    parser.add_argument("--commit", action="store_true",
                        help="on the defaults; keep the outputs in the notebooks themselves")
    options = parser.parse_args(arguments)

    found = {path.stem: path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}
    if options.notebook:
        name = options.notebook.removesuffix(".ipynb")
        if name not in found:
            print(f"no notebook {name}; there are {', '.join(found)}", file=sys.stderr)
            return 2
        found = {name: found[name]}
    if options.commit and (options.p or options.parameters):
        print("--commit executes on the defaults; give no parameters", file=sys.stderr)
        return 2
    given = {name: parameters.literal(value) for name, value in options.p}
    plan, refused = {}, {}
    try:
        for name, path in found.items():
            chosen = from_file(options.parameters, path) if options.parameters else {}
            plan[name] = settings(path, {**chosen, **given})
            if problem := unpinned(plan[name].get("dataset", "embedded")):
                refused[name] = problem
                print(f"{name}: {problem}", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if len(refused) == len(found) > 0:
        return 2

    rows = [("notebook", "minutes", "result", "where")]
    failures = 0
    for number, (name, path) in enumerate(found.items(), 1):
        if name in refused:  # the others need not wait for its commit
            failures += 1
            rows.append((name, "0.0", f"FAILED {refused[name]}", "not started"))
            continue
        print(f"[{number}/{len(found)}] {name} ...", flush=True)
        folder = (options.output_dir / name).resolve()
        began = time.monotonic()
        chosen = plan[name] if options.commit else {"output_dir": str(folder), **plan[name]}
        failed = execute(path, chosen, folder)
        if options.commit and not failed:
            keep_outputs(path, folder / path.name)
        minutes = (time.monotonic() - began) / 60
        failures += failed is not None
        shown = folder.relative_to(PROJECT) if folder.is_relative_to(PROJECT) else folder
        result = f"FAILED {failed}"[:100] if failed else headline(folder)
        rows.append((name, f"{minutes:.1f}", result, str(shown)))
        print(f"[{number}/{len(found)}] {name}: {minutes:.1f} min, {result}", flush=True)
    print("\n" + table(rows))
    if failures:
        print(f"\n{failures} of {len(found)} failed; the table says why, "
              "the notebook in its folder shows where")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
