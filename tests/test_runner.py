"""make run: refusals before anything runs, one failure among several, the table, the copies."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers import runner
from tests.conftest import PROJECT

SAVE = ("from helpers import report\n"
        "report.save_metrics(output_dir, notebook='x', parameters={'seed': seed},\n"
        "    metrics={'twice': 2 * seed}, headline=f'twice is {2 * seed}', started=0.0)")


def write(path, last=SAVE):
    cells = [new_code_cell('seed = 3  # the seed\noutput_dir = "runs/x"  # the results\n'
                           'azure = False  # submit'),
             new_code_cell(last)]
    nb = new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nb, path)
    return path


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    write(folder / "b-good.ipynb")
    return folder


def run(tmp_path, *arguments):
    return runner.main([*arguments, "--output_dir", str(tmp_path / "runs")])


def test_one_failure_does_not_stop_the_others(notebooks, tmp_path, capsys):
    write(notebooks / "a-bad.ipynb", "raise ValueError('row 3 is odd')")
    assert run(tmp_path) == 1
    shown = capsys.readouterr().out
    assert "FAILED ValueError: row 3 is odd" in shown and "twice is 6" in shown
    results = tmp_path / "runs" / "b-good"
    assert json.loads((results / "metrics.json").read_text())["metrics"] == {"twice": 6}
    assert "<html" in (results / "b-good.html").read_text()
    failed = nbformat.read(tmp_path / "runs" / "a-bad" / "a-bad.ipynb", as_version=4)
    assert "row 3 is odd" in str(failed.cells)


def test_parameters_reach_the_notebook(notebooks, tmp_path, capsys):
    assert run(tmp_path, "--notebook", "b-good", "-p", "seed", "21") == 0
    assert "twice is 42" in capsys.readouterr().out
    (tmp_path / "b-good.yml").write_text("seed: 5\n")
    assert run(tmp_path, "--parameters", str(tmp_path)) == 0
    assert "twice is 10" in capsys.readouterr().out


@pytest.mark.parametrize("given,said", [
    (["-p", "sed", "1"], "has no parameter sed"), (["-p", "seed", "one"], "seed"),
    (["-p", "azure", "false"], "write False"), (["--notebook", "c"], "no notebook c"),
    (["--parameters", "nowhere"], "no parameter file"),
    (["--commit", "-p", "seed", "1"], "defaults"),
])
def test_refused_before_anything_runs(notebooks, tmp_path, capsys, given, said):
    assert run(tmp_path, *given) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


COMMIT = "0123456789" * 4


def with_dataset(path):
    nb = nbformat.read(write(path), as_version=4)
    nb.cells[0].source += '\ndataset = "embedded"  # the data'
    nbformat.write(nb, path)


def test_a_data_set_without_its_commit_stops_only_its_own_notebook(notebooks, tmp_path, capsys):
    with_dataset(notebooks / "a-data.ipynb")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "a-data.yml").write_text("dataset: lhoestq/conll2003\n")
    (chosen / "b-good.yml").write_text("seed: 4\n")
    assert run(tmp_path, "--parameters", str(chosen)) == 1
    shown = capsys.readouterr()
    said = ("dataset: no folder lhoestq/conll2003 is here, and as a name on the Hub it needs its "
            "commit (40 hex digits); run it alone with -p dataset lhoestq/conll2003@COMMIT")
    assert shown.err.splitlines()[0] == f"a-data: {said}"
    row = next(line for line in shown.out.splitlines() if line.startswith("a-data "))
    assert f"FAILED {said}" in row and "not started" in row
    assert "twice is 8" in shown.out and "1 of 2 failed" in shown.out
    assert not (tmp_path / "runs" / "a-data").exists()


def test_a_data_set_without_its_commit_alone_is_refused(notebooks, tmp_path, capsys):
    with_dataset(notebooks / "a-data.ipynb")
    assert run(tmp_path, "--notebook", "a-data", "-p", "dataset", "a/b@main") == 2
    assert "a-data: dataset: no folder a/b@main is here" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dataset", [
    "embedded", f"a/b@{COMMIT}", "stanfordnlp/imdb", "samples/data", "/nowhere/x", "data/x.csv",
    "~/x", "a/b/c", "x"])
def test_other_data_sets_are_left_to_the_notebook(dataset):
    assert runner.unpinned(dataset) is None


def test_committing_keeps_outputs_and_only_them(notebooks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(notebooks / "b-good.ipynb", f"output_dir = {str(tmp_path / 'x')!r}\n" + SAVE)
    before = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    assert run(tmp_path, "--commit") == 0
    after = nbformat.read(path, as_version=4)
    assert [cell.source for cell in after.cells] == before
    assert [cell.execution_count for cell in after.cells] == [1, 2]
    assert after.metadata.executed_source == runner.source_digest(after)
    assert "papermill" not in after.metadata


def test_importing_helpers_is_light():
    """No torch, no azure, nothing outside the standard library at `import helpers`."""
    code = ("import sys; before = set(sys.modules); import helpers; "
            "new = {m.split('.')[0] for m in set(sys.modules) - before}; print(sorted(new))")
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            cwd=PROJECT, check=True)
    assert set(eval(answer.stdout)) <= {"helpers"}
