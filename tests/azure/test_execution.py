"""What was submitted is executed for real, from the uploaded snapshot, in a clean folder."""

import csv
import json
from pathlib import Path

import nbformat
import pytest

from helpers import workspace
from tests.azure.conftest import PROJECT
from tests.azure.machine import Machine

NOTEBOOK = "fill-mask-online-endpoint"  # the quickest


@pytest.fixture
def machine(plane, azurite, tmp_path):
    machine = Machine(plane, azurite, tmp_path / "machine")
    plane.execute, plane.start_deployment = machine.job, machine.deployment
    yield machine
    machine.close()


def test_notebook_job(plane, client, machine, tmp_path):
    job = workspace.notebook_job(NOTEBOOK, seed=7, timed_requests=3, top_k=4)
    try:
        done = workspace.run(client, job, tmp_path / "results")
    except workspace.WorkspaceError as error:
        pytest.fail(f"{error}\n{machine.log[-3000:]}")
    assert done.status == "Completed"

    # the snapshot is the project without what .amlignore leaves out
    snapshot = machine.folder / done.name / "snapshot"
    assert (snapshot / "samples/checkpoints/distilbert-mini-uncased/config.json").exists()
    for absent in ("tests", "benchmarks", ".git", ".node", "runs", "config.json"):
        assert not (snapshot / absent).exists(), absent

    [notebook] = (tmp_path / "results").rglob(f"{NOTEBOOK}.ipynb")
    executed = nbformat.read(notebook, as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    [injected] = [cell for cell in executed.cells
                  if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "seed = 7" in injected.source and "top_k = 4" in injected.source
    metrics = [json.loads(path.read_text())
               for path in (tmp_path / "results").rglob("metrics.json")]
    assert len(metrics) == 2 and metrics[0] == metrics[1]  # in `results` and as `metrics`
    assert metrics[0]["parameters"]["seed"] == 7

    import mlflow

    client_ = mlflow.MlflowClient(f"sqlite:///{machine.folder}/mlflow.db")
    [run] = client_.search_runs([e.experiment_id for e in client_.search_experiments()])
    assert run.data.params["seed"] == "7"
    assert set(run.data.metrics) <= set(metrics[0]["metrics"]) and run.data.metrics


def test_online_endpoint_answers_with_the_card_s_response(plane, client, machine):
    card = json.loads((PROJECT / "cli/requests/fill-mask.json").read_text())
    endpoint, deployment = workspace.online("fill-mask")
    with workspace.endpoint(client, endpoint, deployment) as name:
        answer = workspace.invoke(client, name, card)
        assert [len(row) for row in answer] == [card["parameters"]["top_k"]] * len(answer)
        assert all(list(candidate) == ["score", "token", "token_str", "sequence"]
                   for row in answer for candidate in row)
        with pytest.raises(workspace.WorkspaceError, match=r"\[MASK\]"):
            workspace.invoke(client, name, {"inputs": {"input_string": ["no hole"]}})
    assert plane.living() == []


def test_online_endpoint_serves_a_registered_model(plane, client, machine, tiny_checkpoint):
    from azure.ai.ml.entities import Model

    model = client.models.create_or_update(Model(
        name="tiny", version="3", type="custom_model", path=str(tiny_checkpoint)))
    endpoint, deployment = workspace.online("fill-mask", model=f"azureml:{model.name}:3")
    with workspace.endpoint(client, endpoint, deployment) as name:
        answer = workspace.invoke(client, name, {"input_data": ["a [MASK] b"]})

    from helpers import fill_mask

    expected = fill_mask.load(tiny_checkpoint)(["a [MASK] b"], top_k=5)
    assert [c["token"] for c in answer[0]] == [c["token"] for c in expected[0]]


def test_batch_endpoint_makes_a_pair_for_every_file(plane, client, machine, tiny_checkpoint,
                                                    tmp_path):
    plane.execute = machine.batch
    source = tmp_path / "inputs"
    (source / "deep").mkdir(parents=True)
    for number, place in enumerate((source / "a.csv", source / "deep" / "b.csv")):
        place.write_text("input_string\n" + "a [MASK] day\n" * (3 + number) + "no hole\n")
    endpoint, deployment = workspace.batch(checkpoint=str(tiny_checkpoint), mini_batch_size=1)
    with (workspace.cluster(client, workspace.compute()),
          workspace.endpoint(client, endpoint, deployment) as name):
        try:
            found = workspace.invoke_batch(client, name, source, tmp_path / "out")
        except workspace.WorkspaceError as error:
            pytest.fail(f"{error}\n{machine.log[-3000:]}")
    for kind, rows in (("predictions", {"a.csv.csv": {0, 1, 2}, "b.csv.csv": {0, 1, 2, 3}}),
                       ("errors", {"a.csv.csv": {3}, "b.csv.csv": {4}})):
        tables = {path.name: list(csv.DictReader(path.open()))
                  for path in Path(found).rglob(f"{kind}/**/*.csv")}
        assert {name: {int(row["row"]) for row in table} for name, table in tables.items()} == rows
    assert plane.living() == []


def test_distributed_job_trains_in_two_processes(plane, client, machine, tmp_path):
    job = workspace.distributed_job(
        "text-classification", nodes=2, dataset=str(PROJECT / "samples/data/emotion"), epochs=1.0,
        max_train_samples=32, max_eval_samples=16, batch_size=8)
    try:
        workspace.run(client, job, tmp_path / "results")
    except workspace.WorkspaceError as error:
        pytest.fail(f"{error}\n{machine.log[-3000:]}")
    [metrics] = (tmp_path / "results").rglob("metrics.json")
    assert json.loads(metrics.read_text())["parameters"]["max_train_samples"] == 32
    assert list((tmp_path / "results").rglob("results/model/model.safetensors"))


def test_pipeline_prepares_trains_evaluates_and_registers(plane, client, machine):
    job = workspace.pipeline_job(
        "text-classification", precision="fp32", epochs=1.0, batch_size=16,
        max_train_samples=32, model_name="emotion")
    try:
        done = workspace.run(client, job)
    except workspace.WorkspaceError as error:
        pytest.fail(f"{error}\n{machine.log[-3000:]}")
    work = machine.folder / done.name
    metrics = json.loads((work / "evaluate/outputs/metrics/metrics.json").read_text())["metrics"]
    registered = json.loads((work / "register/outputs/registered/model.json").read_text())

    import mlflow

    registry = mlflow.MlflowClient(f"sqlite:///{machine.folder}/mlflow.db")
    version = registry.get_model_version(registered["name"], registered["version"])
    assert (version.name, version.tags) == (
        "emotion", {name: str(value) for name, value in metrics.items()})
