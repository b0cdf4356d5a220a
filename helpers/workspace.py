"""Azure ML: objects from `cli/*.yml`, a client, jobs, and endpoints that delete themselves.

Everything above `connect` works offline. Azure's packages take seconds to import: only here, and
only inside the functions.
"""

import json
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import checkpoints, contract, parameters, runner
from helpers.report import PROJECT

CLI = PROJECT / "cli"
PATIENCE = 900.0  # seconds in which a deletion is tried again
PAUSE = 10.0  # seconds between two looks at something slow
SOURCES = ("checkpoint", "other_checkpoint", "teacher", "dataset")  # may be local paths
FINISHED = ("Completed", "Failed", "Canceled", "NotResponding")


class WorkspaceError(RuntimeError):
    """An operation on Azure ML failed; the message begins with the operation."""


# -- objects, offline ---------------------------------------------------------------------------

def load(name: str, **overrides: str) -> Any:
    """Load `cli/NAME.yml` as the object of azure-ai-ml that its `$schema` names.

    `overrides` are entries by their dotted path, as `az ml ... --set` takes them.
    """
    import azure.ai.ml as ml
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

    loaders = {"environment": ml.load_environment, "amlCompute": ml.load_compute,
               "commandJob": ml.load_job, "pipelineJob": ml.load_job,
               "commandComponent": ml.load_component,
               "managedOnlineEndpoint": ml.load_online_endpoint,
               "managedOnlineDeployment": ml.load_online_deployment,
               "batchEndpoint": ml.load_batch_endpoint,
               "modelBatchDeployment": load_model_batch_deployment}
    path = CLI / f"{name}.yml"
    schema = re.search(r"^\$schema: .*/(\w+)\.schema\.json$", path.read_text(), re.M)
    logging.getLogger("azure.ai.ml").setLevel(logging.ERROR)  # hints about experimental classes
    return loaders[schema[1]](path, params_override=[{key: value} for key, value
                                                     in overrides.items()])


def environment() -> Any:
    """The environment of every job and deployment, built from the project's environment.yml."""
    return load("azure-environment")


def compute(kind: str = "cpu") -> Any:
    """The cluster of kind `cpu` or `gpu`; it scales to zero nodes when nothing runs."""
    return load(f"compute-{kind}")


def notebook_job(notebook: str, parameter_set: str = "embedded", **values: Any) -> Any:
    """A command job that runs one notebook with papermill; every parameter is an input.

    `parameter_set` names the files of defaults: embedded or hub. Its outputs are `results` (the
    executed notebook and the rest of output_dir), `metrics` and, where one is saved, `model`.
    Raises ValueError for a notebook or a parameter that does not exist.
    """
    path = PROJECT / "notebooks" / f"{notebook}.ipynb"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb")))
        raise ValueError(f"no notebook {notebook}; there are: {names}")
    runner.settings(path, values)
    chosen = {**runner.from_file(CLI / "parameters" / parameter_set, path), **values}
    if problem := runner.unpinned(chosen.get("dataset", "embedded")):
        raise ValueError(f"{notebook}: {problem}")
    return _job("notebook-job", "-p ", values, display_name=notebook,
                **{"inputs.notebook": notebook, "inputs.parameter_set": parameter_set})


def distributed_job(task: str, nodes: int = 2, processes: int = 1, **values: Any) -> Any:
    """A command job that fine-tunes on `nodes` machines with `processes` GPUs each.

    `values` are options of `python -m helpers.training`. Raises ValueError for any other.
    """
    from helpers import training  # brings in torch, which takes seconds

    parameters.check(task=task)
    known = [name for name in training.DEFAULTS if name not in ("task", "output_dir")]
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"training has no option {', '.join(unknown)}; it has "
                         f"{', '.join(known)}")
    return _job("distributed-job", "--", values, display_name=f"distributed-{task}",
                **{"inputs.task": task, "resources.instance_count": str(nodes),
                   "distribution.process_count_per_instance": str(processes)})


def pipeline_job(task: str, **inputs: Any) -> Any:
    """A pipeline that prepares the data, trains, evaluates and registers the model."""
    known = load("pipeline").inputs
    if unknown := sorted(set(inputs) - set(known)):
        raise ValueError(f"the pipeline has no input {', '.join(unknown)}; it has "
                         f"{', '.join(known)}")
    given = {"task": task, **inputs}
    parameters.check(**{name: value for name, value in given.items() if name != "model_name"})
    return load("pipeline", **{f"inputs.{name}": _there(name, value) for name, value
                               in given.items()})


def online(task: str = "fill-mask", *, checkpoint: str = "embedded", revision: str | None = None,
           model: str | None = None, precision: str = "fp32", auth_mode: str = "key",
           instance_type: str | None = None, instance_count: int = 1,
           request_timeout_ms: int = 60_000, **overrides: Any) -> tuple[Any, Any]:
    """An online endpoint and its deployment.

    The model is a `checkpoint`, or a registered one where `model` is given (azureml:NAME:VERSION).
    A local folder is uploaded and registered with the deployment. `overrides` are entries of
    online-deployment.yml by dotted path, as `load` takes them: probes, the scoring script.
    Raises ValueError for a task or a parameter that the scoring script would refuse.
    """
    if task not in contract.TASKS:
        raise ValueError(f"task: {task!r} is not one of {', '.join(contract.TASKS)}")
    parameters.check(checkpoint=checkpoint, revision=revision, precision=precision)
    endpoint = load("online-endpoint")
    deployment = load("online-deployment", **{key: str(value) for key, value in overrides.items()})
    endpoint.name = deployment.endpoint_name = task
    endpoint.auth_mode = auth_mode
    deployment.environment_variables.update(TASK=task, PRECISION=precision)
    if model:
        deployment.model = model
    elif checkpoint != "embedded" and checkpoints.is_path(checkpoint):
        deployment.model = load("batch-deployment").model
        deployment.model.name = model_name(checkpoint)
        deployment.model.path = str(checkpoints.find(checkpoint))
    else:
        deployment.environment_variables["CHECKPOINT"] = checkpoint
        if revision:
            deployment.environment_variables["REVISION"] = revision
    deployment.instance_type = instance_type or deployment.instance_type
    deployment.instance_count = instance_count
    deployment.request_settings.request_timeout_ms = request_timeout_ms
    return endpoint, deployment


def batch(*, checkpoint: str = "embedded", revision: str | None = None,
          precision: str = "fp32", top_k: int = 5, instance_count: int = 1,
          mini_batch_size: int = 10) -> tuple[Any, Any]:
    """A batch endpoint for fill-mask and its deployment; `mini_batch_size` counts files.

    A batch deployment needs a registered model: the checkpoint's folder is registered with it.
    """
    parameters.check(checkpoint=checkpoint, revision=revision, precision=precision, top_k=top_k)
    endpoint, deployment = load("batch-endpoint"), load("batch-deployment")
    if checkpoint != "embedded":
        deployment.model.name = model_name(checkpoint)
        deployment.model.path = str(checkpoints.find(checkpoint, revision))
    deployment.settings.environment_variables.update(PRECISION=precision, TOP_K=str(top_k))
    deployment.resources.instance_count = instance_count
    deployment.settings.mini_batch_size = mini_batch_size
    return endpoint, deployment


def model_name(checkpoint: str) -> str:
    """The name under which a checkpoint is registered: letters, digits and hyphens."""
    return re.sub("[^A-Za-z0-9]+", "-", checkpoint).strip("-")


def _there(name: str, value: Any) -> str:
    """A parameter as a job reads it: a path inside the project is relative to the snapshot."""
    if name in SOURCES and value and value != "embedded" and checkpoints.is_path(value):
        path = Path(value).expanduser()
        path = (path if path.exists() else PROJECT / path).resolve()
        if path.exists():
            inside = path.is_relative_to(PROJECT)
            return path.relative_to(PROJECT).as_posix() if inside else str(path)
    return str(value)


def unreachable(thing: Any) -> list[str]:
    """Local folders and files that a job asks for and that its snapshot does not hold."""
    from azure.ai.ml._utils._asset_utils import get_ignore_file

    problems = []
    for name in SOURCES:
        value = getattr((getattr(thing, "inputs", None) or {}).get(name), "_data", None)
        if not isinstance(value, str) or value in ("embedded", "None") \
                or not checkpoints.is_path(value):
            continue
        path = PROJECT / value  # an absolute one stays what it is
        if not path.exists():
            problems.append(f"{name}: there is no {value}")
        elif not path.is_relative_to(PROJECT) or get_ignore_file(PROJECT).is_file_excluded(path):
            problems.append(f"{name}: {value} is not uploaded with the job; put it into a folder "
                            "of the project that .amlignore does not name, or give a name on "
                            "the Hub or embedded")
    return problems


def _job(name: str, option: str, values: Mapping[str, Any], **overrides: str) -> Any:
    """Load a command job with every parameter as an input and as an option of its command."""
    parameters.check(**values)
    anchor = f"{option}output_dir"  # the same place where the scripts of cli/ put them
    added = "".join(f'{option}{key} "${{{{inputs.{key}}}}}" ' for key in values)
    return load(name, **overrides, command=load(name).command.replace(anchor, added + anchor),
                **{f"inputs.{key}": _there(key, value) for key, value in values.items()})


def validate(thing: Any, reachable: bool = True) -> None:
    """Check what azure-ai-ml leaves to the service: inputs named in commands, files and folders.

    `reachable` asks that local data of a job lie in its snapshot.
    Raises ValueError naming the object and everything that is wrong with it.
    """
    problems = unreachable(thing) if reachable else []
    steps = getattr(thing, "jobs", None) or {}
    for part in (thing, *(getattr(step, "component", None) for step in steps.values())):
        for kind, name in re.findall(r"\$\{\{(inputs|outputs)\.(\w+)\}\}",
                                     str(getattr(part, "command", ""))):
            if name not in getattr(part, kind):
                problems.append(f"the command of {part.display_name} uses {kind}.{name}, "
                                "which is not declared")
    base = Path(getattr(thing, "base_path", None) or CLI)
    if code := getattr(thing, "code_configuration", None):
        script = base / str(code.code) / code.scoring_script
        if not script.exists():
            problems.append(f"no scoring script {code.scoring_script}")
    model = getattr(thing, "model", None)
    path = None if isinstance(model, str) else getattr(model, "path", None)
    if path and "://" not in str(path) and not (base / path).exists():
        problems.append(f"no model at {path}")
    if hasattr(type(thing), "_validate") and (result := thing._validate()):
        problems += result.error_messages.values()
    if problems:
        raise ValueError(f"{thing.name or thing.display_name}: {'; '.join(problems)}")


def to_yaml(thing: Any) -> str:
    """An object as YAML; the environment by its file instead of a copy of every pin."""
    import yaml

    content = json.loads(json.dumps(thing._to_dict(), default=str).replace(str(PROJECT), "."))
    first = {key: getattr(thing, key) for key in ("name", "display_name", "type", "command")
             if isinstance(getattr(thing, key, None), str)}
    return yaml.safe_dump(_tidy({**first, **content}), sort_keys=False, width=88)


def _tidy(content: Any) -> Any:
    """Leave out empty entries and the SDK's own."""
    if not isinstance(content, dict):
        return content
    if list(content) == ["path"]:  # of a step's input: pipeline.yml has it in one line too
        return content["path"]
    files = {"conda_file": "../environment.yml"}
    if "image" not in content:  # what runs in the environment, not the environment
        files["environment"] = "file:azure-environment.yml"
    kept = {key: files.get(key) or _tidy(value) for key, value in content.items()}
    if isinstance(content.get("component"), dict):  # of a step; a job on its own shows its command
        shown = f"components/{content['component'].get('display_name')}.yml"
        kept["component"] = None if "command" in content else shown
    return {key: value for key, value in kept.items() if value not in (None, {}, [])}


def plan(*things: Any) -> str:
    """What would be created, on which sizes, and what of it is billed: a line per object."""
    lines = []
    for thing in things:
        kind = type(thing).__name__
        if kind == "AmlCompute":
            what = (f"cluster {thing.name}: {thing.min_instances} to {thing.max_instances} x "
                    f"{thing.size}, billed while a job runs")
        elif kind == "ManagedOnlineDeployment":
            what = (f"deployment {thing.name} of {thing.endpoint_name}: {thing.instance_count} x "
                    f"{thing.instance_type}, billed until it is deleted")
        elif kind == "ModelBatchDeployment":
            what = (f"deployment {thing.name} of {thing.endpoint_name}: "
                    f"{thing.resources.instance_count} node(s) of {_cluster_name(thing)}, "
                    "billed while a job runs")
        elif kind.endswith("Endpoint"):
            what = f"endpoint {thing.name}: {thing.auth_mode} authentication"
        elif kind == "PipelineJob":
            what = (f"job {thing.display_name}: {', '.join(thing.jobs)} on "
                    f"{_cluster_name(thing)}")
        elif kind == "Command":
            nodes = thing.resources.instance_count if thing.resources else 1
            what = f"job {thing.display_name}: {nodes or 1} node(s) of {_cluster_name(thing)}"
        else:
            what = f"{kind.lower()} {thing.name}"
        lines.append(what)
    return "\n".join(lines)


def _cluster_name(thing: Any) -> str:
    name = getattr(thing, "compute", None) or thing.settings.default_compute
    return str(name).removeprefix("azureml:")


def show(*things: Any) -> None:
    """Validate objects and print them: what would be created, then each as YAML. Offline.

    Data that a job could not reach is only said: here nothing is submitted.
    """
    for thing in things:
        validate(thing, reachable=False)
    print(plan(*things))
    for thing in things:
        for problem in unreachable(thing):
            print(f"not yet for Azure ML: {problem}")
    for thing in things:
        print("---", to_yaml(thing), sep="\n", end="")


def unique(name: str) -> str:
    """A valid name of at most 32 characters that nobody else in the region has."""
    stem = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:22].strip("-")
    if not re.match("[a-z]", stem):
        raise ValueError(f"{name!r} is no name for an endpoint: begin with a letter")
    return f"{stem}-{secrets.token_hex(4)}"


# -- the client ---------------------------------------------------------------------------------

def connect(subscription_id: str | None = None, resource_group: str | None = None,
            workspace: str | None = None, *, credential: Any = None, **options: Any) -> Any:
    """A client of the workspace named by arguments, environment variables or config.json.

    The variables are AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP and AZURE_ML_WORKSPACE.
    `options` go to MLClient. Raises WorkspaceError saying what is missing.
    """
    from azure.ai.ml import MLClient

    named = {"subscription_id": subscription_id or os.environ.get("AZURE_SUBSCRIPTION_ID"),
             "resource_group_name": resource_group or os.environ.get("AZURE_RESOURCE_GROUP"),
             "workspace_name": workspace or os.environ.get("AZURE_ML_WORKSPACE")}
    if not all(named.values()):
        named = {**_config(), **{key: value for key, value in named.items() if value}}
    if missing := [key for key in ("subscription_id", "resource_group_name", "workspace_name")
                   if not named.get(key)]:
        raise WorkspaceError(
            f"connect: no {', '.join(missing)}; download config.json from the workspace's page "
            "into the project's folder, or set AZURE_SUBSCRIPTION_ID, AZURE_RESOURCE_GROUP and "
            "AZURE_ML_WORKSPACE")
    client = MLClient(credential or sign_in(), **named,
                      **{"enable_telemetry": False, "show_progress": True, **options})
    with step(f"find workspace {named['workspace_name']}"):
        client.workspaces.get(named["workspace_name"])
    return client


def sign_in() -> Any:
    """A credential: DefaultAzureCredential, else a browser, else a device code."""
    import azure.identity as identity
    from azure.core.exceptions import ClientAuthenticationError

    ways = (lambda: identity.DefaultAzureCredential(),
            lambda: identity.InteractiveBrowserCredential(timeout=120),
            lambda: identity.DeviceCodeCredential(timeout=120))
    for way in ways:
        try:
            credential = way()
            credential.get_token("https://management.azure.com/.default")
            return credential
        except (ClientAuthenticationError, ValueError):
            continue
    raise WorkspaceError("sign in: no credential for Azure was found; run az login, or start from "
                         "where a browser can be opened")


def _config() -> dict[str, str]:
    for folder in (Path.cwd(), PROJECT):
        for path in (folder / "config.json", folder / ".azureml" / "config.json"):
            if path.exists():
                found = json.loads(path.read_text())
                return {"subscription_id": found.get("subscription_id"),
                        "resource_group_name": found.get("resource_group"),
                        "workspace_name": found.get("workspace_name")}
    return {}


@contextmanager
def step(operation: str) -> Iterator[None]:
    """Name the operation in whatever goes wrong with it."""
    try:
        yield
    except WorkspaceError:
        raise
    except KeyboardInterrupt as error:
        error.add_note(f"interrupted: {operation}")
        raise
    except Exception as error:
        said = getattr(error, "message", None) or str(error) or type(error).__name__
        raise WorkspaceError(f"{operation}: {said.strip()}") from error


# -- what deletes itself ------------------------------------------------------------------------

@contextmanager
def endpoint(client: Any, endpoint: Any, deployment: Any, *, keep: bool = False) -> Iterator[str]:
    """Create an endpoint with its deployment, give it all traffic, and delete it at the end.

    Yields the endpoint's unique name. It is deleted on success, failure and interrupt, and after
    a creation whose answer was lost; `keep` keeps it and prints how to delete it.
    """
    online = "Online" in type(endpoint).__name__
    kind = "online" if online else "batch"
    endpoints = client.online_endpoints if online else client.batch_endpoints
    deployments = client.online_deployments if online else client.batch_deployments
    endpoint.name = deployment.endpoint_name = name = unique(endpoint.name)
    for thing in (endpoint, deployment):
        validate(thing)
    print(plan(endpoint, deployment))
    try:
        with step(f"create {kind} endpoint {name}"):
            endpoints.begin_create_or_update(endpoint).result()
        with step(f"create {kind} deployment {name}/{deployment.name}"):
            deployments.begin_create_or_update(deployment).result()
        with step(f"direct traffic to {name}/{deployment.name}"):
            current = endpoints.get(name)
            if online:
                current.traffic = {deployment.name: 100}
            else:
                current.defaults = {"deployment_name": deployment.name}
            endpoints.begin_create_or_update(current).result()
        yield name
    finally:
        _end(f"{kind}-endpoint", name, lambda: endpoints.begin_delete(name),
             lambda: endpoints.get(name), keep, client)


@contextmanager
def cluster(client: Any, compute: Any, *used_by: Any, keep: bool = False) -> Iterator[str]:
    """Create a cluster for jobs and deployments, and delete it at the end.

    Where a cluster of that name is there already, it is used and left. Otherwise it gets a name
    of its own, which `used_by` are told: two runs at once must not delete each other's.
    Yields the name.
    """
    from azure.core.exceptions import ResourceNotFoundError

    name = compute.name
    with step(f"look for cluster {name}"):
        try:
            client.compute.get(name)
            there = True
        except ResourceNotFoundError:
            there = False
    if there:
        print(f"cluster {name}: is there already; it is used and left")
        yield name
        return
    if used_by:
        # 24 characters at most, and no number at the end
        compute.name = name = f"{name[:14].rstrip('-')}-{secrets.token_hex(4)}n"
    for thing in used_by:
        if type(thing).__name__ == "PipelineJob":
            thing.settings.default_compute = name
        else:
            thing.compute = name
    print(plan(compute))
    try:
        with step(f"create cluster {name}"):
            client.compute.begin_create_or_update(compute).result()
        yield name
    finally:
        _end("compute", name, lambda: client.compute.begin_delete(name),
             lambda: client.compute.get(name), keep, client)


def _end(kind: str, name: str, delete: Callable[[], Any], get: Callable[[], Any], keep: bool,
         client: Any) -> None:
    remedy = _remedy(client, f"{kind} delete", f"{name} --yes")
    if keep:
        print(f"kept: {name}; delete it with\n  {remedy}")
        return
    _delete(f"delete {kind} {name}", delete, get, remedy)
    print(f"deleted: {name}")


def _remedy(client: Any, command: str, name: str) -> str:
    return (f"az ml {command} --name {name} --resource-group {client.resource_group_name} "
            f"--workspace-name {client.workspace_name}")


def _delete(operation: str, delete: Callable[[], Any], get: Callable[[], Any],
            remedy: str) -> None:
    """Delete until it is gone: a lost answer, a creation still under way (409) or an interrupt
    only mean that it is tried again."""
    from azure.core.exceptions import ResourceNotFoundError

    until, interrupts, problem = time.monotonic() + PATIENCE, [], None
    while True:
        try:
            try:
                if problem:
                    time.sleep(PAUSE)
                delete().result()
            except ResourceNotFoundError:
                pass
            get()
            problem = "it is still there"
        except ResourceNotFoundError:
            break
        except KeyboardInterrupt as interrupt:
            interrupts.append(interrupt)
            problem = "interrupted"
            print(f"{operation}: still at it; it would cost money to stop now")
        except Exception as error:
            problem = str(error)
        if time.monotonic() > until or len(interrupts) > 2:
            verb = operation.split()[0]
            raise WorkspaceError(f"{operation}: {problem}; {verb} it yourself:\n  {remedy}")
    if interrupts:
        raise interrupts[0]


# -- work ---------------------------------------------------------------------------------------

def run(client: Any, job: Any, download_to: str | Path | None = None) -> Any:
    """Submit a job, wait for its end and download its outputs; an interrupt cancels it.

    Returns the finished job. Raises WorkspaceError for a job that fails, with its page.
    """
    validate(job)
    print(plan(job))
    job.name = unique(job.name or job.display_name)  # known before the answer: it may be lost
    try:
        with step(f"submit job {job.name}"):
            submitted = client.jobs.create_or_update(job)
        return finish(client, submitted, download_to)
    except BaseException:
        _cancel(client, job.name)
        raise


def finish(client: Any, job: Any, download_to: str | Path | None = None,
           output: str | None = None) -> Any:
    """Wait for a submitted job and download its outputs (all, or the one named `output`)."""
    print(f"{job.name}: {job.studio_url}")
    status = None
    while status not in FINISHED:
        with step(f"wait for job {job.name}"):
            job = client.jobs.get(job.name)
            if job.status != status:
                status = str(getattr(job.status, "value", job.status))  # an enumeration
                print(f"{job.name}: {status}")
            if status not in FINISHED:
                time.sleep(PAUSE)
    if status != "Completed":
        raise WorkspaceError(f"run job {job.name}: it ended as {status}; see {job.studio_url}")
    if download_to is not None:
        with step(f"download the outputs of job {job.name}"):
            chosen = {"output_name": output} if output else {"all": True}
            client.jobs.download(job.name, download_path=download_to, **chosen)
            if not any(Path(download_to).rglob("*")):  # the SDK only logs what it misses
                raise FileNotFoundError(f"it has none in the workspace; see {job.studio_url}")
    return job


def _cancel(client: Any, name: str) -> None:
    """Cancel a job unless it has ended or was never made; tried again as a deletion is."""
    from azure.core.exceptions import ResourceNotFoundError

    def look() -> None:
        if client.jobs.get(name).status in FINISHED:
            raise ResourceNotFoundError(f"{name} has ended")

    def cancel() -> Any:
        look()
        return client.jobs.begin_cancel(name)

    try:
        _delete(f"cancel job {name}", cancel, look, _remedy(client, "job cancel", name))
    except WorkspaceError as error:  # the first error is the one to report
        print(error)


def register(client: Any, job: Any, name: str, metrics: Mapping[str, Any],
             output: str = "model") -> str:
    """Register a job's model with its metrics as tags; returns azureml:NAME:VERSION."""
    from azure.ai.ml.entities import Model

    tags = {key: str(value) for key, value in metrics.items()
            if isinstance(value, (int, float, str))}
    with step(f"register model {name}"):
        model = client.models.create_or_update(Model(
            name=name, type="custom_model", path=f"azureml://jobs/{job.name}/outputs/{output}",
            description=f"from job {job.name}", tags=tags))
    return f"azureml:{model.name}:{model.version}"


def invoke(client: Any, name: str, request: Mapping[str, Any]) -> Any:
    """Post one request to an online endpoint; returns the decoded answer."""
    with tempfile.TemporaryDirectory() as folder, step(f"invoke online endpoint {name}"):
        path = Path(folder, "request.json")
        path.write_text(json.dumps(request), encoding="utf-8")
        return json.loads(client.online_endpoints.invoke(name, request_file=path))


def logs(client: Any, name: str, deployment: str = "demo", lines: int = 50) -> str:
    """The last lines that the scoring script of a deployment printed."""
    with step(f"read the logs of {name}/{deployment}"):
        return client.online_deployments.get_logs(deployment, name, lines=lines)


def invoke_batch(client: Any, name: str, inputs: str | Path, download_to: str | Path) -> Path:
    """Send a local folder to a batch endpoint, wait, and download predictions/ and errors/."""
    from azure.ai.ml import Input

    try:
        with step(f"invoke batch endpoint {name}"):
            job = client.batch_endpoints.invoke(
                name, input=Input(type="uri_folder", path=str(inputs)))
        with step(f"wait for job {job.name}"):
            finish(client, client.jobs.get(job.name))
            [scoring] = client.jobs.list(parent_job_name=job.name)
        finish(client, scoring, download_to, output="score")
    except BaseException:
        try:  # the service names the job: after a lost answer only the endpoint knows it
            for job in client.batch_endpoints.list_jobs(name):
                _cancel(client, job.name)
        except Exception as error:
            print(f"cancel the jobs of {name}: {error}")
        raise
    return Path(download_to)
