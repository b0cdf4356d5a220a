"""The scripts of cli/, run to the end against a stand-in `az`, and stopped at every step."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.azure.conftest import PROJECT, absent

NAMES = ("fill-mask-online-endpoint", "fill-mask-batch-endpoint", "emotion-detection",
         "token-classification", "extractive-qa", "evaluate-model-fill-mask")


@pytest.fixture
def shell(tmp_path):
    """Run a script of a copy of cli/ with the stand-in az first in PATH."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT / "cli", project / "cli",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("notebooks", "helpers", "samples", ".amlignore"):  # read, never written
        (project / name).symlink_to(PROJECT / name)
    (tmp_path / "bin").mkdir()
    az = tmp_path / "bin" / "az"
    stand_in = Path(__file__).with_name("stand_in_az.py")
    az.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{stand_in}" "$@"\n')
    az.chmod(0o755)
    (tmp_path / "inputs").mkdir()

    def run(name, *options, **variables):
        state = tmp_path / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.rmtree(project / "runs", ignore_errors=True)
        (state / "exists").mkdir(parents=True)
        for there in variables.pop("there", ()):
            (state / "exists" / there).touch()
        if name == "fill-mask-batch-endpoint" and "--help" not in options:
            options = (str(tmp_path / "inputs"), *options)
        done = subprocess.run(
            ["bash", str(project / "cli" / f"{name}.sh"), *options], capture_output=True,
            text=True, timeout=60, start_new_session=True, cwd=tmp_path,
            env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path),
                 "STATE": str(state), "RETRY_SECONDS": "0", **variables})
        log = state / "calls.jsonl"
        done.calls = [json.loads(line) for line in log.read_text().splitlines()
                      ] if log.exists() else []
        done.left = sorted(path.name for path in (state / "exists").iterdir())
        return done

    return run


@pytest.mark.parametrize("name", NAMES)
def test_runs_to_the_end_and_leaves_nothing(shell, name):
    done = shell(name)
    assert done.returncode == 0, done.stderr
    assert done.left == []
    verbs = [verb for verb, _ in done.calls]
    if "online" in name or name in NAMES[2:5]:
        assert '"capital"' in done.stdout
        assert verbs[-1].endswith("delete")
    if name in NAMES[2:5]:
        assert verbs.index("model create") < verbs.index("online-endpoint create")
        given = next(given for verb, given in done.calls if verb == "model create")
        assert given["--set"] == ["tags.test_accuracy=0.93", "tags.rows=150"]
        given = next(given for verb, given in done.calls if verb == "online-deployment create")
        assert f"model=azureml:{name}:7" in given["--set"]
    # what is billed is said before it is created
    assert "billed" in done.stdout
    names = [given["--name"] for verb, given in done.calls if verb.endswith("endpoint create")]
    assert all(len(name) <= 32 for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_and_override_is_what_azure_ai_ml_accepts(shell, name):
    """`az ml` loads FILE with the --set values as overrides: so do we."""
    import azure.ai.ml as ml
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

    from helpers import workspace

    load = {"compute": ml.load_compute, "job": ml.load_job,
            "online-endpoint": ml.load_online_endpoint,
            "online-deployment": ml.load_online_deployment,
            "batch-endpoint": ml.load_batch_endpoint,
            "batch-deployment": load_model_batch_deployment}
    notebook = name not in NAMES[:2]
    done = shell(name, *(("-p", "seed=3") if notebook else ()), "-p", "precision=bf16",
                 *(("-p", "top_k=3") if "batch" in name else ()))
    seen = 0
    for verb, given in done.calls:
        if "--file" not in given:
            continue
        place = PROJECT / "cli" / Path(given["--file"]).name
        thing = load[verb.split()[0]](place, params_override=[
            dict([value.split("=", 1)]) for value in given["--set"]])
        workspace.validate(thing)
        seen += 1
        if verb == "online-deployment create":
            assert thing.environment_variables["PRECISION"] == "bf16"
        if verb == "batch-deployment create":
            assert thing.settings.environment_variables == {"PRECISION": "bf16", "TOP_K": "3"}
        if verb == "job create":
            assert '-p seed "${{inputs.seed}}" -p precision "${{inputs.precision}}" -p output_dir' \
                in thing.command
            given = {key: value._data for key, value in thing.inputs.items()}
            assert (given["seed"], given["notebook"]) == ("3", name)
    assert seen


def test_shell_and_python_make_the_same_job(shell):
    from azure.ai.ml import load_job

    from helpers import workspace

    done = shell("emotion-detection", "-p", "epochs=1.0", "-p", "seed=3")
    given = next(given for verb, given in done.calls if verb == "job create")
    ours = load_job(PROJECT / "cli" / "notebook-job.yml", params_override=[
        dict([value.split("=", 1)]) for value in given["--set"]])
    theirs = workspace.notebook_job("emotion-detection", epochs=1.0, seed=3)
    cluster = next(given["--name"] for verb, given in done.calls if verb == "compute create")
    assert ours.compute == cluster
    theirs.compute = ours.compute
    assert workspace.to_yaml(ours) == workspace.to_yaml(theirs)


@pytest.mark.parametrize("how, name", [
    *((how, name) for how in ("refused", "lost", "interrupt") for name in NAMES),
    *(("term", name) for name in NAMES[:3])])  # the others are like the third
def test_stopped_at_each_step_it_cleans_up(shell, name, how):
    clean = shell(name)
    for step, (verb, _) in enumerate(clean.calls, 1):
        done = shell(name, FAIL_AT=str(step), HOW=how)
        where = f"{how} at call {step} ({verb})"
        assert done.left == [], f"{where} left {done.left}"
        if verb.endswith("delete"):  # tried again
            assert done.returncode == 0 or how in ("interrupt", "term"), f"{where}: {done.stderr}"
        else:
            assert done.returncode != 0, f"{where}: went unnoticed"
        kinds = {verb.split()[0] for verb, _ in done.calls if verb.endswith("create")}
        deleted = [verb for verb, _ in done.calls if verb.endswith("delete")]
        for kind in kinds & {"compute", "online-endpoint", "batch-endpoint"}:
            assert f"{kind} delete" in deleted, f"{where}: no delete of {kind}"


def test_deletion_that_never_works_is_said(shell, tmp_path):
    stand_in = tmp_path / "bin" / "az"
    text = stand_in.read_text()
    stand_in.write_text(text.replace(
        "exec", 'case "$*" in *"online-endpoint delete"*) exit 1;; esac\nexec'))
    done = shell("fill-mask-online-endpoint", CLEAN_UP_SECONDS="0")
    assert done.returncode == 1
    assert re.search("NOT DELETED and still billed: .*\n  az ml online-endpoint delete",
                     done.stderr)


def test_failed_job_is_a_failure(shell):
    done = shell("emotion-detection", JOB_STATUS="Failed")
    assert done.returncode != 0 and "ended as Failed" in done.stderr and done.left == []


def test_cluster_that_was_there_is_left(shell):
    done = shell("evaluate-model-fill-mask", there=["compute distilbert-cpu"])
    assert done.returncode == 0 and done.left == ["compute distilbert-cpu"]


@pytest.mark.parametrize("name", NAMES)
def test_keep(shell, name):
    done = shell(name, "--keep")
    assert done.returncode == 0 and done.left
    for left in done.left:
        kind, thing = left.split()
        assert f"az ml {kind} delete --name {thing} --yes" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_dry_run_creates_nothing(shell, name):
    done = shell(name, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.calls == []
    assert "billed" in done.stdout and "would run: az ml" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_help(shell, name):
    done = shell(name, "--help")
    assert done.returncode == 0 and done.calls == []
    assert name in done.stdout and "--keep" in done.stdout and "--dry-run" in done.stdout


@pytest.mark.parametrize("options, said", [
    (("--wrong",), "unknown option --wrong"), (("--parameters", "none"), "embedded or hub"),
    (("-p", "epochs"), "write NAME=VALUE"), (("--workspace",), "needs a value"),
    (("-p", "eppochs=1"), "no parameter eppochs; there are: checkpoint"),
    (("-p", "azure=false"), "write True or False"), (("-p", "seed="), "give a value"),
    (("-p", "precision=int8"), "give fp32 or bf16"),
    (("-p", "dataset=me/mine"), "give -p dataset=me/mine@COMMIT"),
    (("-p", "dataset=me/mine@main"), "give -p dataset=me/mine@COMMIT"),
    (("-p", "dataset=/tmp"), "/tmp is not uploaded with the job"),
    (("-p", "dataset=./absent"), "./absent is not uploaded with the job")])
def test_wrong_usage(shell, options, said):
    done = shell("emotion-detection", *options)
    assert done.returncode == 2 and said in done.stderr and done.calls == []


@pytest.mark.parametrize("name, options, said", [
    ("fill-mask-online-endpoint", ("-p", "top_k=3"), "no parameter top_k; there are: checkpoint p"),
    ("fill-mask-online-endpoint", ("-p", "precision=int8"), "give fp32 or bf16"),
    ("fill-mask-online-endpoint", ("--checkpoint", "./mine"), "helpers.workspace.online"),
    ("fill-mask-batch-endpoint", ("-p", "top_k=0"), "a whole number of at least 1"),
    ("fill-mask-batch-endpoint", ("-p", "seed=0"), "no parameter seed"),
    ("token-classification", ("--parameters", "hub"), "give -p dataset=lhoestq/conll2003@COMMIT")])
def test_wrong_parameters(shell, name, options, said):
    done = shell(name, *options)
    assert done.returncode == 2 and said in done.stderr and done.calls == []


@pytest.mark.parametrize("options, said", [
    (("-p", "epochs=many"), "epochs: "), (("-p", "batch_size=0"), "batch_size: ")])
def test_with_python_at_hand_types_and_ranges_are_checked_too(shell, options, said):
    done = shell("emotion-detection", *options, PYTHON=sys.executable)
    assert done.returncode == 2 and said in done.stderr and done.calls == []


@pytest.mark.parametrize("arguments, said", [
    ((), None), (("-p", "epochs", "1", "-p", "azure", "False"), None),
    (("-p", "eppochs", "1"), "no parameter eppochs"), (("-p", "azure", "false"), "write False"),
    (("-p", "dataset", "me/mine"), "me/mine")])
def test_a_job_begins_with_the_same_check(arguments, said):
    done = subprocess.run(
        [sys.executable, str(PROJECT / "cli/pipeline_steps.py"), "check", "--notebook",
         "emotion-detection", "--parameters", "embedded", *arguments, "-p", "output_dir", "/x"],
        capture_output=True, text=True)
    assert (done.returncode, said is None or said in done.stderr) == (2 if said else 0, True)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_hub(shell, name, tmp_path):
    commit = ("-p", f"dataset=lhoestq/conll2003@{'a' * 40}") if name == NAMES[3] else ()
    python = tmp_path / "bin" / "python"  # finds the checkpoint without a network
    python.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    python.chmod(0o755)
    done = shell(name, "--parameters", "hub", *commit, PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    settings = [value for _, given in done.calls for value in given.get("--set", ())]
    if name == NAMES[0]:
        assert "environment_variables.CHECKPOINT=distilbert-base-uncased" in settings
    elif name == NAMES[1]:
        assert {"model.name=distilbert-base-uncased", f"model.path={tmp_path}"} < set(settings)
    else:
        assert "inputs.parameter_set=hub" in settings
    if name in NAMES[2:5]:  # the file says bf16
        assert "environment_variables.PRECISION=bf16" in settings


@pytest.mark.parametrize("option", ["./mine_1", "mine_1/", "owner/mine_1"])
def test_checkpoint_is_registered_under_the_same_name_as_from_python(shell, tmp_path, option):
    from helpers import workspace

    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    python.chmod(0o755)
    done = shell("fill-mask-batch-endpoint", "--checkpoint", option, PYTHON=str(python))
    [name] = [value for _, given in done.calls for value in given.get("--set", ())
              if value.startswith("model.name=")]
    assert name == f"model.name={workspace.model_name(option)}"
    assert re.fullmatch("model.name=[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]", name)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_plan_is_said_before_anything_is_created(shell, name):
    clean = shell(name)
    first = next(number for number, (verb, _) in enumerate(clean.calls, 1)
                 if verb.endswith("create"))
    said = shell(name, FAIL_AT=str(first), HOW="refused").stdout
    verbs = [verb for verb, _ in clean.calls]
    for verb, line in (("compute create", "0 to 3 x Standard_DS3_v2"),
                       ("job create", ": 1 node of distilbert-cpu-"),
                       ("online-deployment create", "1 x Standard_DS2_v2, billed until"),
                       ("batch-deployment create", "endpoint fill-mask-batch-")):
        assert (line in said) == (verb in verbs), f"{verb}: {said}"


def test_two_runs_have_a_cluster_each(shell):
    names = {given["--name"] for _ in range(2) for verb, given in
             shell("evaluate-model-fill-mask").calls if verb == "compute create"}
    assert len(names) == 2 and all(name.startswith("distilbert-cpu-") for name in names)


def test_arrays_that_may_be_empty_are_expanded_as_old_bash_can():
    """bash 3.2, that of macOS, takes an empty array for an unset variable."""
    never_empty = {"where", "settings", "arguments"}
    for path in (PROJECT / "cli").glob("*.sh"):
        plain = set(re.findall(r'(?<!\+)"\$\{(\w+)\[@\]\}"', path.read_text()))
        assert plain <= never_empty, path.name


def test_no_workspace_is_one_sentence(shell, tmp_path):
    (tmp_path / "bin" / "az").write_text("#!/bin/sh\nexit 1\n")
    done = shell("emotion-detection")
    assert done.returncode == 2 and "az configure --defaults" in done.stderr


def test_options_name_the_workspace(shell):
    done = shell("fill-mask-online-endpoint", "--subscription", "s", "--resource-group", "g",
                 "--workspace", "w")
    assert all((given["--subscription"], given["--resource-group"], given["--workspace-name"])
               == ("s", "g", "w") for _, given in done.calls)


def test_shellcheck():
    program = shutil.which("shellcheck")
    if program is None:
        absent("needs shellcheck (apt-get install shellcheck)")
    scripts = sorted((PROJECT / "cli").glob("*.sh"))
    assert {path.stem for path in scripts} >= set(NAMES)
    done = subprocess.run([program, *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for path in scripts:
        assert "set -euo pipefail" in path.read_text(), path.name
        if path.stem != "library":
            assert os.access(path, os.X_OK), f"{path.name} is not executable"


def test_sigterm_cleans_up(shell, tmp_path):
    az = tmp_path / "bin" / "az"
    az.write_text(az.read_text().replace(
        "exec", 'case "$*" in *"online-endpoint invoke"*) kill -TERM $PPID; sleep 0.2;; esac\n'
                "exec"))
    done = shell("fill-mask-online-endpoint")
    assert done.returncode in (143, -signal.SIGTERM) and done.left == []
