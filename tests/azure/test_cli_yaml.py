"""Every YAML file of cli/: loads offline, declares what it uses, and fits its notebook."""

import json
import re
import socket

import pytest
import yaml

from helpers import runner, workspace
from tests.azure.conftest import PROJECT

CLI = PROJECT / "cli"
OBJECTS = sorted(path.relative_to(CLI).with_suffix("").as_posix() for path in
                 [*CLI.glob("*.yml"), *CLI.glob("components/*.yml")])
PARAMETERS = sorted((CLI / "parameters").glob("*/*.yml"))
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def offline(monkeypatch):
    """No socket can be connected."""
    import azure.ai.ml  # noqa: F401  so that importing it is not what fails

    def refuse(self, address):
        raise AssertionError(f"a connection to {address} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: refuse(None, a))


@pytest.mark.parametrize("name", OBJECTS)
def test_loads_and_declares_what_it_uses(name, offline, capsys):
    thing = workspace.load(name)
    workspace.show(thing)
    printed = capsys.readouterr().out
    assert str(PROJECT) not in printed
    assert yaml.safe_load(printed.split("---\n", 1)[1])

    content = yaml.safe_load((CLI / f"{name}.yml").read_text())
    command = content.get("command", "")
    for kind in ("inputs", "outputs"):
        used = set(re.findall(rf"\$\{{\{{{kind}\.(\w+)\}}\}}", command))
        assert used == set(content.get(kind) or {}) or "jobs" in content, kind


def test_there_are_objects():
    assert len(OBJECTS) >= 13


def test_pipeline_names_only_inputs_and_outputs_that_exist():
    pipeline = yaml.safe_load((CLI / "pipeline.yml").read_text())
    assert list(pipeline["jobs"]) == ["prepare", "train", "evaluate", "register"]
    components = {step: yaml.safe_load((CLI / node["component"]).read_text())
                  for step, node in pipeline["jobs"].items()}
    used = set()
    for step, node in pipeline["jobs"].items():
        needed = {name for name, entry in components[step]["inputs"].items()
                  if "default" not in entry}
        assert needed <= set(node["inputs"]) <= set(components[step]["inputs"])
        for source in node["inputs"].values():
            if found := re.fullmatch(r"\$\{\{parent\.inputs\.(\w+)\}\}", source):
                used.add(found[1])
            else:
                found = re.fullmatch(r"\$\{\{parent\.jobs\.(\w+)\.outputs\.(\w+)\}\}", source)
                assert found[2] in components[found[1]]["outputs"]
    assert used == set(pipeline["inputs"])


def test_environment_builds_from_the_project_s_own_pins():
    content = yaml.safe_load((CLI / "azure-environment.yml").read_text())
    assert (CLI / content["conda_file"]).resolve() == PROJECT / "environment.yml"
    assert re.fullmatch(r"mcr\.microsoft\.com/azureml/[\w.-]+:\d{8}\.v\d+", content["image"])


@pytest.mark.parametrize("break_it, said", [
    (lambda job: setattr(job, "command", "echo ${{inputs.absent}}"), "inputs.absent"),
    (lambda job: setattr(job, "command", "cp x ${{outputs.absent}}"), "outputs.absent")])
def test_undeclared_names_are_refused(break_it, said):
    job = workspace.load("notebook-job")
    break_it(job)
    with pytest.raises(ValueError, match=f"{said}, which is not declared"):
        workspace.validate(job)


def test_missing_files_are_refused(tmp_path):
    deployment = workspace.load("online-deployment", **{
        "code_configuration.scoring_script": "cli/absent.py"})
    with pytest.raises(ValueError, match="demo: no scoring script cli/absent.py"):
        workspace.validate(deployment)
    _, deployment = workspace.batch()
    deployment.model.path = "../absent"
    with pytest.raises(ValueError, match="no model at .*absent"):
        workspace.validate(deployment)


def test_wrong_parameters_are_refused():
    name = NOTEBOOKS[0].stem
    with pytest.raises(ValueError, match="has no parameter eppochs; it has"):
        workspace.notebook_job(name, eppochs=1)
    with pytest.raises(ValueError, match='write False'):
        workspace.notebook_job(name, azure="false")
    with pytest.raises(ValueError, match="no notebook absent; there are: "):
        workspace.notebook_job("absent")
    with pytest.raises(ValueError, match="no input epoch"):
        workspace.pipeline_job("text-classification", epoch=1.0)


@pytest.mark.parametrize("path", PARAMETERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_parameter_file_fits_its_notebook(path):
    notebook = PROJECT / "notebooks" / f"{path.stem}.ipynb"
    assert notebook.exists(), f"{path.name} has no notebook"
    runner.settings(notebook, yaml.safe_load(path.read_text()) or {})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", ["embedded", "hub"])
def test_every_notebook_has_its_parameter_files(notebook, kind):
    assert (CLI / "parameters" / kind / f"{notebook.stem}.yml").exists()


@pytest.mark.parametrize("path", sorted((CLI / "requests").glob("*.json")), ids=lambda p: p.stem)
def test_sample_request_is_json(path):
    assert json.loads(path.read_text())
