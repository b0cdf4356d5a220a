"""Every notebook of the folder: its style, its committed outputs, and that it runs twice alike."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers import runner
from tests import notebook_rules as rules
from tests.conftest import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# Parameters that make a notebook quick; every notebook takes its own.
SMALL: dict[str, dict] = {
    "fill-mask-online-endpoint": {"timed_requests": 20},
    "emotion-detection": {"max_train_samples": 48, "max_eval_samples": 30, "epochs": 1.0},
    "token-classification": {"max_train_samples": 48, "max_eval_samples": 30, "epochs": 1.0},
    "extractive-qa": {"max_train_samples": 24, "max_eval_samples": 16, "epochs": 1.0},
    "fill-mask-batch-endpoint": {"max_eval_samples": 40},
    "evaluate-model-fill-mask": {"max_eval_samples": 16, "words_per_text": 2},
    "knowledge-distillation": {"steps": 2, "max_eval_samples": 16},
}


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_style(path):
    wrong = rules.problems(nbformat.read(path, as_version=4), rules.SOURCE)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_committed_outputs(path):
    wrong = rules.problems(nbformat.read(path, as_version=4), rules.OUTPUT + rules.COMMITTED)
    assert not wrong, "\n".join(wrong)


def test_index_names_every_notebook():
    index = (PROJECT / "notebooks" / "README.md").read_text(encoding="utf-8")
    missing = [path.name for path in NOTEBOOKS if path.name not in index]
    assert not missing, f"notebooks/README.md does not name {missing}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_twice_alike(path, tmp_path):
    """papermill with small parameters, then strict nbval on the result."""
    small = runner.settings(path, SMALL.get(path.stem, {}))
    failed = runner.execute(path, {"output_dir": str(tmp_path / "results"), **small}, tmp_path)
    assert failed is None, failed
    assert (tmp_path / "results" / "metrics.json").exists()
    assert (tmp_path / f"{path.stem}.html").stat().st_size > 10_000
    executed = nbformat.read(tmp_path / path.name, as_version=4)
    wrong = rules.problems(executed, [rules.no_errors, rules.in_order, rules.no_widgets])
    assert not wrong, "\n".join(wrong)
    again = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q",
         "--override-ini=addopts=", "--rootdir", str(tmp_path), str(tmp_path / path.name)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "TQDM_DISABLE": "1"})
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-1000:]


# ------------------------------------------------------------ the rules themselves

TITLE = """# Good

Which words fit?

| you will learn | how |
|---|---|
| minutes | 1 |
| data | none |
| model | none |
| cost on Azure | none |"""


def good_notebook():
    """A notebook without a fault."""
    code = [
        "import time\nfrom helpers import parameters, report",
        'checkpoint = "embedded"  # the model\nseed = 0  # the seed\n'
        'output_dir = "runs/good"  # the results',
        "parameters.check(checkpoint=checkpoint, seed=seed, output_dir=output_dir)\n"
        "started = time.time()",
    ]
    cells = [new_markdown_cell(TITLE), *map(new_code_cell, code)]
    for number in range(6):
        cells += [new_markdown_cell(f"## Step {number}"), new_code_cell(f"print({number})")]
    for name in rules.LAST_SECTIONS:
        cells += [new_markdown_cell(name), new_code_cell(f"print({name!r})")]
    cells.append(new_code_cell("report.save_metrics(output_dir)"))
    nb = new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nb.cells[2].metadata["tags"] = ["parameters"]
    for number, cell in enumerate(rules.code_cells(nb), 1):
        cell.execution_count = number
        cell.outputs = [new_output("stream", name="stdout", text="1\n")]
    nb.metadata["executed_source"] = runner.source_digest(nb)
    return nb


def code(nb, number):
    return rules.code_cells(nb)[number]


def append(number, text):
    def change(nb):
        code(nb, number).source += text
    return change


def replace(number, old, new):
    def change(nb):
        code(nb, number).source = code(nb, number).source.replace(old, new)
    return change


def output(**fields):
    def change(nb):
        code(nb, 5).outputs = [new_output(**fields)]
    return change


def drop(heading):
    def change(nb):
        nb.cells = [c for c in nb.cells if c.source != heading]
    return change


def set_attribute(number, name, value):
    def change(nb):
        code(nb, number)[name] = value
    return change


def swap_last_sections(nb):
    where = [i for i, c in enumerate(nb.cells) if c.source in rules.LAST_SECTIONS]
    nb.cells[where[0]].source, nb.cells[where[1]].source = (
        nb.cells[where[1]].source, nb.cells[where[0]].source)


def retag(nb):
    code(nb, 1).metadata["tags"] = []


def four_ignored(nb):
    for number in range(4, 8):
        code(nb, number).metadata["tags"] = ["nbval-ignore-output"]


def without_title(nb):
    nb.cells[0].source = "Good?"


def without_question(nb):
    nb.cells[0].source = nb.cells[0].source.replace("?", ".")


def without_cost(nb):
    nb.cells[0].source = nb.cells[0].source.replace("| cost on Azure | none |", "")


def many_cells(nb):
    nb.cells[5:5] = [new_markdown_cell("more") for _ in range(40)]


def many_lines(nb):
    for cell in rules.code_cells(nb)[3:12]:
        cell.source = "\n".join("print(1)" for _ in range(20))
    nb.cells[-1:-1] = [new_code_cell("\n".join("print(1)" for _ in range(20))) for _ in range(8)]


def no_outputs_in_a_section(nb):
    code(nb, 5).outputs = []


def other_kernel(nb):
    nb.metadata["kernelspec"]["name"] = "my-venv"


def widget_state(nb):
    nb.metadata["widgets"] = {"state": {}}


BROKEN = [
    (rules.title, without_title), (rules.title, without_question), (rules.title, without_cost),
    (rules.imports_first, append(0, "\nprint(1)")), (rules.imports_first, retag),
    (rules.parameters_cell, retag),
    (rules.parameters_cell, append(1, "\nTopK = 5  # upper case")),
    (rules.parameters_cell, append(1, "\ntop_k = 5")),
    (rules.parameters_cell, append(1, "\ntop_k = 2 + len('x')  # derived")),
    (rules.parameters_cell, append(1, "\nfavourite = 5  # unknown")),
    (rules.parameters_cell, append(1, "\nbatch_size = 0  # out of range")),
    (rules.parameters_cell, replace(1, "seed = 0  # the seed\n", "")),
    (rules.parameters_checked, replace(2, "seed=seed, ", "")),
    (rules.parameters_checked, replace(2, "seed=seed", "seed=0")),
    (rules.parameters_checked, replace(2, "parameters.check", "print")),
    (rules.parameters_kept, append(5, "\nseed = 1")),
    (rules.parameters_kept, append(5, "\nfor seed in range(3):\n    print(seed)")),
    (rules.sections, drop("## Exercises")), (rules.sections, swap_last_sections),
    (rules.saved_last, replace(-1, "save_metrics", "folder")),
    (rules.size, many_cells), (rules.size, many_lines),
    (rules.size, append(5, "\nprint(1)" * 20)), (rules.size, append(5, "\nprint('" + "x" * 88 + "')")),
    (rules.forbidden, append(5, "\n!ls")), (rules.forbidden, append(5, "\n%run other.ipynb")),
    (rules.forbidden, append(5, "\n# pip install torch")),
    (rules.forbidden, append(5, "\nprint('<SUBSCRIPTION_ID>')")),
    (rules.forbidden, append(5, "\nopen('/home/me/file')")),
    (rules.forbidden, append(5, "\napi_key = 'abcdefgh12345678'")),
    (rules.forbidden, append(5, "\nload(trust_remote_code=True)")),
    (rules.commented_out, append(5, "\n# x = compute(3)")),
    (rules.commented_out, append(5, "\n# model.eval()")),
    (rules.ignored_cells, four_ignored), (rules.kernel, other_kernel),
    (rules.shows, no_outputs_in_a_section), (rules.in_order, set_attribute(5, "execution_count", 9)),
    (rules.in_order, set_attribute(5, "execution_count", None)),
    (rules.no_errors, output(output_type="error", ename="ValueError", evalue="x", traceback=[])),
    (rules.no_errors, output(output_type="stream", name="stderr", text="careful")),
    (rules.no_errors, output(output_type="stream", name="stdout", text="FutureWarning: soon")),
    (rules.no_widgets, widget_state),
    (rules.no_widgets, output(output_type="display_data", data={
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"}})),
    (rules.no_machine_paths, output(output_type="stream", name="stdout", text="in /home/me/x")),
    (rules.no_machine_paths, output(output_type="display_data", data={"text/html": "/tmp/x"})),
    (rules.same_source, append(5, "\nprint(2)")),
]


def test_a_good_notebook_breaks_no_rule():
    assert rules.problems(good_notebook(), rules.SOURCE + rules.OUTPUT + rules.COMMITTED) == []


@pytest.mark.parametrize("rule,change", BROKEN, ids=lambda x: x.__name__)
def test_a_broken_notebook_is_caught(rule, change):
    nb = copy.deepcopy(good_notebook())
    change(nb)
    assert rule(nb), f"{rule.__name__} did not notice"


def test_every_rule_is_tested():
    everything = set(rules.SOURCE + rules.OUTPUT + rules.COMMITTED)
    assert {rule for rule, _ in BROKEN} == everything
