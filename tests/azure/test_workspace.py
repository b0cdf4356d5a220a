"""helpers.workspace with the real MLClient against the control plane, with and without faults."""

import json
import random
import re
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import workspace
from tests.azure import control_plane, schemas
from tests.azure.conftest import absent
from tests.azure.control_plane import Fault

# The SDK looks for earlier versions of these, and goes on where no answer comes.
SPARE = {"GET /environments/distilbert-tutorial", "GET /models/distilbert-mini-uncased",
         "GET /models/emotion"}
REQUEST = {"inputs": {"input_string": ["Paris is the [MASK] of France."]}}


def online(small_code, **options):
    endpoint, deployment = workspace.online(**options)
    deployment.code_configuration.code = str(small_code)
    return endpoint, deployment


def tour(client, small_code, **options):
    """The life of an online endpoint; returns the answer to one request."""
    with workspace.endpoint(client, *online(small_code, **options)) as name:
        return workspace.invoke(client, name, REQUEST)


@pytest.fixture(scope="module")
def work(azurite, tmp_path_factory):
    """A checkpoint, a folder to score, and what a job leaves: `work(plane)` lets jobs leave it."""
    folder = tmp_path_factory.mktemp("work")
    for name, text in (("checkpoint/config.json", "{}"), ("inputs/a.csv", "input_string\n"),
                       ("made/a.csv", "file,row\n")):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    made = azurite.upload(folder / "made", "jobs/made")

    def execute(name, properties, job):
        properties["written"] = {"score" if "deployment" in properties else "model": made}
        return "Completed"

    def start(plane):
        plane.execute = execute
        return folder

    return start


def job_tour(plane, client, small_code, work):
    """A cluster with a batch endpoint and a job on it; returns what was registered and fetched."""
    folder = work(plane)
    endpoint, deployment = workspace.batch()
    deployment.code_configuration.code = str(small_code)
    deployment.model.path = str(folder / "checkpoint")
    job = workspace.distributed_job("text-classification")
    job.component.code = str(small_code)
    with (tempfile.TemporaryDirectory() as place,
          workspace.cluster(client, workspace.compute(), job, deployment)):
        with workspace.endpoint(client, endpoint, deployment) as name:
            workspace.invoke_batch(client, name, folder / "inputs", f"{place}/batch")
        done = workspace.run(client, job, f"{place}/job")
        fetched = [len(list(Path(place, part).rglob("a.csv"))) for part in ("batch", "job")]
        return workspace.register(client, done, "emotion", {"accuracy": 1.0}), fetched


DONE = ("azureml:emotion:1", [1, 1])


# -- nothing goes wrong -------------------------------------------------------------------------

@pytest.mark.parametrize("auth_mode", ["key", "aad_token"])
def test_online_endpoint(plane, client, small_code, monkeypatch, auth_mode):
    endpoint, deployment = online(small_code, task="question-answering", auth_mode=auth_mode,
                                  instance_type="Standard_DS3_v2", instance_count=2,
                                  request_timeout_ms=5000)
    planned = []  # the plan, and what had been sent when it was printed
    monkeypatch.setattr(workspace, "print", lambda said: planned.append(
        (said, [r.operation for r in plane.requests if r.method != "GET"])), raising=False)
    plane.requests.clear()
    with workspace.endpoint(client, endpoint, deployment) as name:
        assert re.fullmatch(r"question-answering-[0-9a-f]{8}", name) and len(name) <= 32
        assert plane.living() == [f"/onlineendpoints/{name}"]
        assert plane.store[f"/onlineendpoints/{name}"]["properties"]["traffic"] == {"demo": 100}
        assert workspace.invoke(client, name, REQUEST) == {"echo": REQUEST}
        assert "ready" in workspace.logs(client, name)
    assert plane.living() == []
    [body] = plane.bodies("/deployments/")
    assert body["properties"]["instanceType"] == "Standard_DS3_v2"
    assert body["sku"]["capacity"] == 2
    assert body["properties"]["requestSettings"]["requestTimeout"] == "PT5S"
    assert body["properties"]["livenessProbe"]["initialDelay"] == "PT10M"
    assert body["properties"]["environmentVariables"]["TASK"] == "question-answering"
    # a key is asked for; the token is the caller's own, and the control plane looks for whom
    asked = any(r.path.endswith("/listKeys") for r in plane.requests)
    assert asked == (auth_mode == "key")
    # what will be billed is said before the first request that creates something
    [(said, sent), (deleted, _)] = planned
    assert deleted == f"deleted: {name}" and sent == []
    created = {r.path.split("/")[-1] for r in plane.requests if r.method == "PUT"
               and re.search("onlineEndpoints/[^/]+(/deployments/[^/]+)?$", r.path)}
    assert created == {name, "demo"}
    assert said == (f"endpoint {name}: {auth_mode} authentication\ndeployment demo of {name}: "
                    "2 x Standard_DS3_v2, billed until it is deleted")


def test_what_a_run_creates_is_what_was_planned(plane, client, small_code, work, monkeypatch):
    planned, real = [], workspace.plan
    monkeypatch.setattr(workspace, "plan", lambda *things: planned.append(
        (real(*things), [r.path for r in plane.requests if r.method == "PUT"])) or planned[-1][0])
    assert job_tour(plane, client, small_code, work) == DONE
    for said, before in planned:  # one line per object, each created only afterwards
        for line in said.splitlines():
            kind, name = re.match(r"(cluster|endpoint|deployment|job) ([\w-]+)", line).groups()
            name = "distributed-text-" if kind == "job" else name
            end = {"cluster": "computes", "endpoint": "batchEndpoints", "job": "jobs",
                   "deployment": "deployments"}[kind] + f"/{name}"
            assert not any(end in path for path in before), line
            assert any(end in r.path for r in plane.requests if r.method == "PUT"), line
    assert len(planned) == 3
    [cluster] = {r.path.split("/")[-1] for r in plane.requests
                 if r.method == "PUT" and "/computes/" in r.path}
    assert re.fullmatch("distilbert-cpu-[0-9a-f]{8}n", cluster)
    for pattern in ("/jobs/", "/deployments/"):
        [body] = plane.bodies(pattern)
        place = body["properties"].get("computeId") or body["properties"]["compute"]
        assert place.endswith(f"/computes/{cluster}")


def test_deployment_of_a_registered_model_leaves_the_choice_to_it(plane, client, small_code):
    client.models.create_or_update(model_entity())
    assert tour(client, small_code, model="azureml:emotion:1", task="text-classification")
    [body] = plane.bodies("/deployments/")
    assert body["properties"]["model"].endswith("/models/emotion/versions/1")
    assert "CHECKPOINT" not in body["properties"]["environmentVariables"]


def model_entity():
    from azure.ai.ml.entities import Model

    return Model(name="emotion", version="1", type="custom_model",
                 path="azureml://jobs/one/outputs/model")


def test_batch_endpoint_registers_the_embedded_checkpoint(plane, client, small_code, tmp_path,
                                                          azurite):
    source, wanted = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.csv").write_text("input_string\nx [MASK]\n")
    endpoint, deployment = workspace.batch(mini_batch_size=7)
    deployment.code_configuration.code = str(small_code)
    folder = tmp_path / "checkpoint"  # small, since it is uploaded
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    deployment.model.path = str(folder)

    def score(name, properties, job):
        [given] = properties["inputData"].values()
        assert given["uri"].startswith("azureml://")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a.csv").write_text("file,row\n")
        properties["written"] = {"score": azurite.upload(tmp_path / "made", f"jobs/{name}")}
        return "Completed"

    plane.execute = score
    with (workspace.cluster(client, workspace.compute()),
          workspace.endpoint(client, endpoint, deployment) as name):
        properties = plane.store[f"/batchendpoints/{name}"]["properties"]
        assert properties["defaults"]["deploymentName"] == "demo"
        workspace.invoke_batch(client, name, source, wanted)
    assert plane.living() == []
    assert [path.name for path in wanted.rglob("*.csv")] == ["a.csv"]
    [body] = plane.bodies("/deployments/")
    assert body["properties"]["miniBatchSize"] == 7
    assert body["properties"]["retrySettings"] == {"maxRetries": 3, "timeout": "PT5M"}
    [model] = plane.bodies("/models/")
    assert model["properties"]["modelType"] == "custom_model"


def test_job_distributed_job_environment_and_model(plane, client, small_code, capsys):
    client.environments.create_or_update(workspace.environment())
    [environment] = plane.bodies("/environments/")
    assert "torch==" in environment["properties"]["condaFile"]

    job = workspace.distributed_job("text-classification", nodes=3, processes=2, seed=4)
    job.component.code = str(small_code)
    done = workspace.run(client, job)
    [body] = plane.bodies("/jobs/")
    assert body["properties"]["distribution"] == {
        "distributionType": "PyTorch", "processCountPerInstance": 2}
    assert body["properties"]["resources"]["instanceCount"] == 3
    assert body["properties"]["inputs"]["seed"]["value"] == "4"

    name = workspace.register(client, done, "emotion", {"accuracy": 0.93, "rows": 150})
    assert name == "azureml:emotion:1"
    [model] = plane.bodies("/models/")
    assert model["tags" if "tags" in model else "properties"]
    assert model["properties"]["tags"] == {"accuracy": "0.93", "rows": "150"}
    assert done.name in model["properties"]["modelUri"]
    assert "3 node(s) of distilbert-gpu" in capsys.readouterr().out


def test_every_output_of_a_job_is_downloaded(plane, client, small_code, azurite, tmp_path):
    def work(name, properties, job):
        for key in ("results", "model"):
            (tmp_path / key).mkdir()
            (tmp_path / key / "made.txt").write_text(key)
            properties.setdefault("written", {})[key] = azurite.upload(
                tmp_path / key, f"jobs/{name}/{key}")
        return "Completed"

    plane.execute = work
    job = workspace.distributed_job("text-classification")
    job.component.code = str(small_code)
    workspace.run(client, job, tmp_path / "got")
    assert sorted(path.read_text() for path in (tmp_path / "got").rglob("made.txt")) == [
        "model", "results"]


def test_failed_job_raises_with_its_page(plane, client, small_code):
    plane.execute = lambda *job: "Failed"
    job = workspace.distributed_job("text-classification")
    job.component.code = str(small_code)
    with pytest.raises(workspace.WorkspaceError, match=r"run job .*: it ended as Failed; see http"):
        workspace.run(client, job)


def test_interrupted_job_is_cancelled(plane, client, small_code):
    plane.execute = lambda *job: time.sleep(30)
    plane.fault = Fault("interrupt-after", lambda r: r.operation.startswith("GET /jobs/"))
    job = workspace.distributed_job("text-classification")
    job.component.code = str(small_code)
    with pytest.raises(KeyboardInterrupt):
        workspace.run(client, job)
    [job] = [value for key, value in plane.store.items() if key.startswith("/jobs/")]
    assert job["properties"]["status"] == "Canceled"


def test_keep_keeps_and_says_how_to_delete(plane, client, small_code, capsys):
    with workspace.endpoint(client, *online(small_code), keep=True) as name:
        pass
    assert plane.living() == [f"/onlineendpoints/{name}"]
    assert f"az ml online-endpoint delete --name {name} --yes" in capsys.readouterr().out


def test_cluster_that_was_there_is_left(plane, client, capsys):
    with workspace.cluster(client, workspace.compute(), keep=True):
        pass
    with workspace.cluster(client, workspace.compute()):
        pass
    assert plane.living() == ["/computes/distilbert-cpu"]
    [body] = plane.bodies("/computes/")
    assert body["properties"]["properties"]["scaleSettings"] == {
        "minNodeCount": 0, "maxNodeCount": 3, "nodeIdleTimeBeforeScaleDown": "PT2M"}


def test_error_in_the_body_deletes(plane, client, small_code):
    with pytest.raises(ZeroDivisionError):
        with workspace.cluster(client, workspace.compute()):
            with workspace.endpoint(client, *online(small_code)):
                1 / 0
    assert plane.living() == []


def test_names_are_valid_and_unique():
    names = {workspace.unique("Fill mask: a name that is far too long to be one!")
             for _ in range(200)}
    assert len(names) == 200
    assert all(re.fullmatch("[a-z][a-z0-9-]{1,30}[a-z0-9]", name) for name in names)
    with pytest.raises(ValueError, match="begin with a letter"):
        workspace.unique("3d")


# -- the workspace and the credential -----------------------------------------------------------

def test_connect_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workspace, "PROJECT", tmp_path)
    for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(workspace.WorkspaceError, match="no subscription_id.*config.json"):
        workspace.connect(resource_group="g", workspace="w")


@pytest.mark.parametrize("way", ["environment", "config.json"])
def test_connect_finds_the_workspace(plane, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    named = {"subscription_id": control_plane.SUBSCRIPTION, "resource_group": control_plane.GROUP,
             "workspace_name": control_plane.WORKSPACE}
    if way == "config.json":
        (tmp_path / "config.json").write_text(json.dumps(named))
    else:
        for name, value in zip(("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP",
                                "AZURE_ML_WORKSPACE"), named.values()):
            monkeypatch.setenv(name, value)
    client = workspace.connect(credential=control_plane.Credential(), **plane.connection())
    assert client.workspace_name == control_plane.WORKSPACE


def test_sign_in_without_any_credential_is_one_sentence(monkeypatch):
    import azure.identity
    from azure.core.exceptions import ClientAuthenticationError

    class Nothing:
        def __init__(self, **options):
            pass

        def get_token(self, *scopes):
            raise ClientAuthenticationError("none")

    for name in ("DefaultAzureCredential", "InteractiveBrowserCredential", "DeviceCodeCredential"):
        monkeypatch.setattr(azure.identity, name, Nothing)
    with pytest.raises(workspace.WorkspaceError, match="^sign in: no credential.*run az login"):
        workspace.sign_in()


def test_schemas_are_there(schema_folder):
    """What every other test relies on where the schemas are: a wrong body is found."""
    if schema_folder is None:
        absent("needs the maintainers' test material: azure-schemas (not in a clone)")
    body = {"location": "local", "properties": {"authMode": "Key", "traffic": {"demo": 100}}}
    path, version = "/onlineEndpoints/one", max(schema_folder.glob("*.json")).stem
    assert schemas.problems(schema_folder, path, version, body) == []
    body["properties"]["traffic"] = "all"
    assert schemas.problems(schema_folder, path, version, body)


# -- something goes wrong -----------------------------------------------------------------------

def steps_of(running_plane, tour):
    """Every operation of a tour, with the steps that send it."""
    running_plane.reset()
    steps, current = {}, ["delete"]
    real = workspace.step

    @contextmanager
    def spy(operation):
        current.append(operation)
        with real(operation):
            yield
        current.pop()

    running_plane.fault = Fault("none", lambda request: steps.setdefault(
        request.operation, []).append(re.sub("-[0-9a-f]{8}n?", "", current[-1])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "step", spy)
        tour()
    return steps


@pytest.fixture(scope="module")
def operations(running_plane, client, small_code):
    steps = steps_of(running_plane, lambda: tour(client, small_code))
    return {operation: first for operation, (first, *_) in steps.items()}


@pytest.fixture(scope="module")
def job_operations(running_plane, client, small_code, work):
    steps = steps_of(running_plane, lambda: job_tour(running_plane, client, small_code, work))
    steps.pop("GET /discovery", None)  # a client asks once
    return steps


def failing(plane, tour, kind, operation, times):
    """One tour under a fault; returns what came of it after checking that nothing is left."""
    plane.reset()
    fault = plane.fault = Fault(kind, lambda request: request.operation == operation, times)
    outcome = None
    try:
        outcome = tour()
    except (workspace.WorkspaceError, KeyboardInterrupt) as error:
        outcome = error
    where = f"{kind} at {operation}"
    # what polled for an interrupted call must not run into the next fault; join returns at once
    # for a thread whose join was interrupted before
    while any(thread.name.startswith("LROPoller") for thread in threading.enumerate()):
        time.sleep(0.01)
    assert fault.hits, f"{where}: did not happen"
    assert plane.living() == [], f"{where}: left {plane.living()}"
    assert plane.working() == [], f"{where}: left {plane.working()} running"
    return outcome, where


@pytest.mark.parametrize("turn", range(2))
def test_jobs_and_batch_endpoints_under_faults(plane, client, small_code, work, job_operations,
                                               turn):
    """Each operation meets two of the faults: the product of both would take minutes."""
    assert len(job_operations) >= 25
    for number, (operation, steps) in enumerate(job_operations.items()):
        kind = control_plane.FAULTS[(number + 3 * turn) % len(control_plane.FAULTS)]
        outcome, where = failing(
            plane, lambda: job_tour(plane, client, small_code, work), kind, operation,
            times=8 if kind in ("500", "drop-after") else 1)
        if outcome == DONE:
            lasting = kind not in ("429", "drop-before", "slow") and "delete" not in steps
            assert not lasting or operation in SPARE, f"{where}: went unnoticed"
        elif kind.startswith("interrupt"):
            assert isinstance(outcome, KeyboardInterrupt), f"{where}: {outcome!r}"
        else:
            assert kind in ("500", "drop-after") or operation.startswith("POST"), \
                f"{where}: {outcome!r}"
            said = re.sub("-[0-9a-f]{8}n?", "", str(outcome))
            assert said.startswith(tuple(f"{step}: " for step in steps)), f"{where}: {outcome}"


@pytest.mark.parametrize("kind", ["429", "drop-before", "slow"])
def test_passing_fault_is_survived(plane, client, small_code, operations, kind):
    for operation, step in operations.items():
        outcome, where = failing(plane, lambda: tour(client, small_code), kind,
                                 operation, times=1)
        if operation.startswith("POST") and outcome != {"echo": REQUEST}:
            names_the_step(outcome, step, where)  # a POST might count twice: it is not repeated
        else:
            assert outcome == {"echo": REQUEST}, f"{where}: {outcome!r}"


def names_the_step(outcome, step, where):
    assert isinstance(outcome, workspace.WorkspaceError), f"{where}: {outcome!r}"
    said = re.sub("-[0-9a-f]{8}n?", "", str(outcome))
    assert said.startswith(f"{step}: "), f"{where}: {outcome}"


@pytest.mark.parametrize("kind", ["500", "drop-after"])
def test_lasting_fault_names_the_operation(plane, client, small_code, operations, kind):
    assert len(operations) >= 15
    for operation, step in operations.items():
        outcome, where = failing(plane, lambda: tour(client, small_code), kind,
                                 operation, times=8)
        if step.startswith("delete"):
            assert outcome == {"echo": REQUEST}, f"{where}: {outcome!r}"
        elif operation not in SPARE or outcome != {"echo": REQUEST}:
            names_the_step(outcome, step, where)


@pytest.mark.parametrize("kind", ["interrupt-before", "interrupt-after"])
def test_interrupt_deletes(plane, client, small_code, operations, kind):
    for operation, step in operations.items():
        outcome, where = failing(plane, lambda: tour(client, small_code), kind,
                                 operation, times=1)
        if operation in SPARE and outcome == {"echo": REQUEST}:
            continue  # the SDK swallows even an interrupt there
        assert isinstance(outcome, KeyboardInterrupt), f"{where}: {outcome!r}"
        if not step.startswith("delete"):
            [note] = outcome.__notes__
            assert re.sub("-[0-9a-f]{8}n?", "", note) == f"interrupted: {step}", where


def test_deletion_that_never_works_says_how_to_do_it(plane, client, small_code, monkeypatch):
    monkeypatch.setattr(workspace, "PATIENCE", 0.5)
    plane.fault = Fault("500", lambda request: request.method == "DELETE", times=10**6)
    with pytest.raises(workspace.WorkspaceError, match="delete it yourself:\n  az ml online-end"):
        tour(client, small_code)


class Weather:
    """A fault in one call of five, of any kind."""

    def __init__(self, seed: int):
        self.random, self.hits = random.Random(seed), []

    def pick(self, request):
        if self.random.random() >= 0.2:
            return None
        self.hits.append(self.random.choice(control_plane.FAULTS))
        return self.hits[-1]


def weathered(plane, client, small_code, seed):
    plane.reset()
    plane.fault = Weather(seed)
    try:
        with workspace.cluster(client, workspace.compute()):
            tour(client, small_code)
    except (workspace.WorkspaceError, KeyboardInterrupt):
        pass
    assert plane.living() == [], f"round {seed}: {plane.fault.hits} left {plane.living()}"
    return len(plane.fault.hits)


def test_bad_weather(plane, client, small_code):
    assert sum(weathered(plane, client, small_code, seed) for seed in range(5)) > 5


@pytest.mark.soak
def test_hundred_rounds_of_bad_weather(plane, client, small_code):
    assert sum(weathered(plane, client, small_code, seed) for seed in range(100)) > 300
