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
    with pytest.raises(ValueError, match="no option eppochs; it has checkpoint, "):
        workspace.distributed_job("text-classification", eppochs=1)
    with pytest.raises(ValueError, match="no option output_dir"):
        workspace.distributed_job("text-classification", output_dir="x")
    for job in (workspace.distributed_job, workspace.pipeline_job):
        with pytest.raises(ValueError, match="task: .*fill-mask"):
            job("fill-mask")
        with pytest.raises(ValueError, match="precision: .*int8"):
            job("text-classification", precision="int8")
    for values in ({"dataset": "me/mine"}, {"parameter_set": "hub"}):
        with pytest.raises(ValueError, match="token-classification: .*@COMMIT"):
            workspace.notebook_job("token-classification", **values)
    pinned = f"lhoestq/conll2003@{'a' * 40}"
    job = workspace.notebook_job("token-classification", "hub", dataset=pinned)
    assert job.inputs["dataset"]._data == pinned


@pytest.mark.parametrize("options, said", [
    ({"task": "fil-mask"}, "task: 'fil-mask' is not one of fill-mask, text-class"),
    ({"precision": "int8"}, "precision: .*int8"), ({"checkpoint": ""}, "checkpoint: "),
    ({"checkpoint": "./absent"}, "checkpoint: no folder ./absent")])
def test_deployments_refuse_what_their_scripts_would(options, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        workspace.online(**options)
    if "task" not in options:
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            workspace.batch(**options)


def test_deployments_take_precision_top_k_probes_and_a_local_checkpoint(tmp_path):
    _, deployment = workspace.batch(precision="bf16", top_k=7)
    assert deployment.settings.environment_variables == {"PRECISION": "bf16", "TOP_K": "7"}
    with pytest.raises(ValueError, match="top_k"):
        workspace.batch(top_k=0)
    _, deployment = workspace.online(precision="bf16", **{
        "liveness_probe.initial_delay": 60, "readiness_probe.period": 5,
        "environment_variables.MAX_TEXTS": 10})
    assert deployment.liveness_probe.initial_delay == 60
    assert (deployment.readiness_probe.period, deployment.readiness_probe.timeout) == (5, 2)
    assert deployment.environment_variables == {
        "TASK": "fill-mask", "PRECISION": "bf16", "MAX_TEXTS": "10", "CHECKPOINT": "embedded"}

    for embedded in (PROJECT / "samples/checkpoints").iterdir():
        if embedded.is_dir():
            (tmp_path / "my model_1").symlink_to(embedded)
    _, deployment = workspace.online(checkpoint=str(tmp_path / "my model_1"))
    workspace.validate(deployment)
    assert "CHECKPOINT" not in deployment.environment_variables
    assert deployment.model.name.endswith("-my-model-1")


@pytest.mark.parametrize("build", [
    lambda **values: workspace.notebook_job("emotion-detection", **values),
    lambda **values: workspace.distributed_job("text-classification", **values),
    lambda **values: workspace.pipeline_job("text-classification", **values)])
def test_local_data_must_lie_in_the_snapshot(build, tmp_path, capsys, monkeypatch):
    inside = PROJECT / "samples" / "data" / "emotion"
    for given in (str(inside), "samples/data/emotion", "./samples/data/emotion"):
        job = build(dataset=given)
        assert job.inputs["dataset"]._data == "samples/data/emotion"
        workspace.validate(job)
    monkeypatch.chdir(inside)
    assert build(dataset="./train.jsonl").inputs["dataset"]._data.endswith("emotion/train.jsonl")

    (tmp_path / "mine.csv").write_text("text,label\n")
    for given, said in ((str(tmp_path / "mine.csv"), "not uploaded"), ("./absent", "there is no"),
                        (str(PROJECT / "tests"), "tests is not uploaded")):
        job = build(dataset=given, checkpoint="embedded")
        with pytest.raises(ValueError, match=f"dataset: .*{said}"):
            workspace.validate(job)
        capsys.readouterr()
        workspace.show(job)  # offline it is only said: the notebook itself can use it
        assert re.search(f"not yet for Azure ML: dataset: .*{said}", capsys.readouterr().out)


def test_three_ways_to_fine_tune_are_shown_readably(capsys):
    workspace.show(workspace.notebook_job("emotion-detection", epochs=1.0),
                   workspace.distributed_job("text-classification", epochs=1.0),
                   workspace.pipeline_job("text-classification", epochs=1.0))
    printed = capsys.readouterr().out
    assert printed.splitlines()[:3] == [
        "job emotion-detection: 1 node(s) of distilbert-cpu",
        "job distributed-text-classification: 2 node(s) of distilbert-gpu",
        "job fine-tuning: prepare, train, evaluate, register on distilbert-cpu"]
    assert len(printed.splitlines()) < 110
    [_, _, _, pipeline] = printed.split("---\n")
    assert yaml.safe_load(pipeline)["jobs"]["train"]["inputs"]["epochs"] == \
        "${{parent.inputs.epochs}}"


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
