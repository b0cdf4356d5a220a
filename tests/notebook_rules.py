"""The style of a notebook, as code: each rule returns what is wrong, an empty list if nothing.

    python -m tests.notebook_rules notebooks/NAME.ipynb
"""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat

from helpers import parameters, runner

ALWAYS = {"checkpoint", "seed", "output_dir"}
TITLE_ROWS = ("you will learn", "minutes", "data", "model", "cost on azure")
LAST_SECTIONS = ["## What we saw", "## Exercises", "## On Azure ML"]
FORBIDDEN = {
    "a shell escape or magic": r"^\s*[!%]",
    "an install": r"\bpip3? install\b|\bconda install\b|get_ipython\(",
    "a log-in": r"\bnotebook_login\b|\bhuggingface-cli\b|\baz login\b",
    "a placeholder": r"<[A-Z][A-Z0-9_ -]{2,}>",
    "an absolute path": r"""["'](/(?:home|root|tmp|work|Users|mnt|opt|var|usr)\b|[A-Z]:\\)""",
    "a secret": r"(?i)(api[_-]?key|password|sas[_-]?token|account[_-]?key)\s*=\s*[\"'][^\"']{8,}",
    "trust_remote_code": r"trust_remote_code",
}
MACHINE_PATH = r"/(?:home|root|tmp|work|Users|private)/|[A-Z]:\\Users"


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(nb, tag: str):
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def headings(nb) -> list[str]:
    lines = [line for cell in nb.cells if cell.cell_type == "markdown"
             for line in cell.source.splitlines()]
    return [line.strip() for line in lines if re.match(r"##? ", line)]


def assigned(source: str) -> set[str]:
    """Names that a cell's code binds at its top level."""
    names = set()
    for node in ast.parse(source).body:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                names.add(part.id)
    return names


def title(nb) -> list[str]:
    first = nb.cells[0]
    if first.cell_type != "markdown" or not re.match(r"# \S", first.source):
        return ["the first cell is not a markdown cell with `# Title`"]
    text = first.source.lower()
    wrong = [f"the first cell's table lacks `{row}`" for row in TITLE_ROWS if row not in text]
    if "?" not in first.source:
        wrong.append("the first cell asks no question")
    return wrong + (["the first cell has no table"] if "|---" not in first.source else [])


def imports_first(nb) -> list[str]:
    cells = code_cells(nb)
    if not cells or not all(isinstance(node, (ast.Import, ast.ImportFrom))
                            for node in ast.parse(cells[0].source).body):
        return ["the first code cell holds something other than imports"]
    if len(cells) < 2 or "parameters" not in cells[1].metadata.get("tags", []):
        return ["the code cell after the imports is not the one tagged `parameters`"]
    return []


def parameters_cell(nb) -> list[str]:
    cells = tagged(nb, "parameters")
    if len(cells) != 1:
        return [f"{len(cells)} cells are tagged `parameters`, not one"]
    wrong, names = [], []
    for line in cells[0].source.splitlines():
        match = re.fullmatch(r"([a-z][a-z0-9_]*) = (.+?)  # \S.*", line)
        if not match:
            wrong.append(f"not `name = literal  # comment`: {line}")
            continue
        names.append(match[1])
        try:
            ast.literal_eval(match[2])
        except (ValueError, SyntaxError):
            wrong.append(f"not a literal: {line}")
    wrong += [f"not in helpers.parameters.TYPES: {n}" for n in names if n not in parameters.TYPES]
    wrong += [f"the parameter {name} is missing" for name in sorted(ALWAYS - set(names))]
    if not wrong:
        values = {}
        exec(cells[0].source, {}, values)
        wrong += [text for name, value in values.items()
                  if (text := parameters.problem(name, value))]
    return wrong


def parameters_checked(nb) -> list[str]:
    cells = code_cells(nb)
    place = [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    if not place or place[0] + 1 >= len(cells):
        return ["no code cell follows the parameters"]
    names = assigned(cells[place[0]].source)
    for node in ast.walk(ast.parse(cells[place[0] + 1].source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parameters.check":
            passed = {k.arg for k in node.keywords if k.arg and ast.unparse(k.value) == k.arg}
            missing = sorted(names - passed)
            return [f"parameters.check does not get {', '.join(missing)}"] if missing else []
    return ["the cell after the parameters does not call parameters.check(...)"]


def parameters_kept(nb) -> list[str]:
    cells = tagged(nb, "parameters")
    names = assigned(cells[0].source) if cells else set()
    return [f"a later cell assigns the parameter {name}" for cell in code_cells(nb)
            if cell not in cells for name in sorted(assigned(cell.source) & names)]


def sections(nb) -> list[str]:
    found = [h for h in headings(nb) if h.startswith("## ")]
    wrong = [f"no section `{name}`" for name in LAST_SECTIONS if name not in found]
    if not wrong and [h for h in found if h in LAST_SECTIONS] != LAST_SECTIONS:
        wrong.append(f"these sections are out of order: {', '.join(LAST_SECTIONS)}")
    if not wrong and not set(found[-3:]) == set(LAST_SECTIONS):
        wrong.append("a section follows `## What we saw` that belongs before it")
    return wrong


def saved_last(nb) -> list[str]:
    last = nb.cells[-1]
    return [] if last.cell_type == "code" and "save_metrics(" in last.source else [
        "the last cell does not save metrics.json with report.save_metrics"]


def size(nb) -> list[str]:
    wrong = []
    if not 20 <= len(nb.cells) <= 45:
        wrong.append(f"{len(nb.cells)} cells, not 20 to 45")
    lines = [line for cell in code_cells(nb) for line in cell.source.splitlines() if line.strip()]
    if len(lines) > 250:
        wrong.append(f"{len(lines)} lines of code, more than 250")
    for cell in code_cells(nb):
        own = cell.source.splitlines()
        if len(own) > 20:
            wrong.append(f"a cell of {len(own)} lines, more than 20: {own[0]}")
        wrong += [f"{len(line)} characters, more than 88: {line}" for line in own if len(line) > 88]
    return wrong


def forbidden(nb) -> list[str]:
    return [f"{what}: {match[0].strip()}" for cell in code_cells(nb)
            for what, pattern in FORBIDDEN.items()
            if (match := re.search(pattern, cell.source, re.MULTILINE))]


def commented_out(nb) -> list[str]:
    wrong = []
    for cell in code_cells(nb):
        for line in cell.source.splitlines():
            text = line.strip()
            if not text.startswith("#"):
                continue
            try:
                body = ast.parse(text.lstrip("# ")).body
            except SyntaxError:
                continue
            if any(isinstance(node, (ast.Assign, ast.Import, ast.ImportFrom, ast.Return)) or
                   isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
                   for node in body):
                wrong.append(f"commented-out code: {text}")
    return wrong


def ignored_cells(nb) -> list[str]:
    count = len(tagged(nb, "nbval-ignore-output"))
    return [f"{count} cells are tagged nbval-ignore-output, more than 3"] if count > 3 else []


def shows(nb) -> list[str]:
    """Every section shows something: a code cell with an output."""
    wrong, section, seen = [], None, True
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (h := re.search(r"^## .*", cell.source, re.M)):
            if section and not seen:
                wrong.append(f"the section `{section}` shows nothing")
            section, seen = h[0], False
        elif cell.cell_type == "code" and cell.get("outputs"):
            seen = True
    return wrong + ([f"the section `{section}` shows nothing"] if section and not seen else [])


def kernel(nb) -> list[str]:
    name = nb.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"the kernel is {name}, not python3"]


def in_order(nb) -> list[str]:
    counts = [cell.get("execution_count") for cell in code_cells(nb)]
    return [] if counts == list(range(1, len(counts) + 1)) else [
        f"cells were not executed in order from 1: {counts}"]


def no_errors(nb) -> list[str]:
    wrong = []
    for cell in code_cells(nb):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                wrong.append(f"an error is in the outputs: {output.get('ename')}")
            if output.get("name") == "stderr":
                wrong.append(f"stderr is in the outputs: {output.text[:60]!r}")
            if re.search(r"\b(User|Future|Deprecation|Runtime)Warning\b", str(output)):
                wrong.append("a warning is in the outputs")
    return wrong


def no_widgets(nb) -> list[str]:
    wrong = ["widget state is stored"] if "widgets" in nb.metadata else []
    return wrong + ["a widget is in the outputs" for cell in code_cells(nb)
                    for output in cell.get("outputs", [])
                    if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]


def no_machine_paths(nb) -> list[str]:
    wrong = []
    for cell in code_cells(nb):
        for output in cell.get("outputs", []):
            texts = [output.get("text", "")] + [
                text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
            wrong += [f"a machine's path is in the outputs: {match[0]}" for text in texts
                      if (match := re.search(MACHINE_PATH, text))]
    return wrong


def same_source(nb) -> list[str]:
    stored = nb.metadata.get("executed_source")
    return [] if stored == runner.source_digest(nb) else [
        "the outputs were made from other source than is there; run make notebooks"]


Rule = Callable[..., list[str]]
SOURCE: list[Rule] = [title, imports_first, parameters_cell, parameters_checked, parameters_kept,
                      sections, saved_last, size, forbidden, commented_out, ignored_cells, kernel]
OUTPUT: list[Rule] = [shows, in_order, no_errors, no_widgets, no_machine_paths]
COMMITTED: list[Rule] = [same_source]


def problems(nb, rules: list[Rule]) -> list[str]:
    """What is wrong with a notebook, each line with the name of its rule."""
    return [f"{rule.__name__}: {text}" for rule in rules for text in rule(nb)]


if __name__ == "__main__":
    found = 0
    for name in sys.argv[1:]:
        notebook = nbformat.read(Path(name), as_version=4)
        rules = SOURCE + (OUTPUT if any(c.get("outputs") for c in code_cells(notebook)) else [])
        for line in problems(notebook, rules):
            print(f"{name}: {line}")
            found += 1
    print(f"{found} problems")
    sys.exit(bool(found))
