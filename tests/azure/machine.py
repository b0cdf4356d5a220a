"""The machines behind the control plane: they run what was submitted, from what was uploaded.

Every command runs in a clean folder with a Python of its own that has the project's packages
but not the project: `helpers` can only come from the uploaded snapshot.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

from tests.azure import control_plane, storage

BATCH_DRIVER = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.init()
size, files = int(sys.argv[2]), sys.argv[3:]
for first in range(0, len(files), size):
    answered = script.run(files[first:first + size])
    assert len(answered) == len(files[first:first + size]), answered
"""


class Machine:
    """Runs jobs, deployments and batch jobs of a control plane below `folder`."""

    def __init__(self, plane: control_plane.ControlPlane, blobs: storage.Azurite, folder: Path):
        self.plane, self.blobs, self.folder = plane, blobs, folder
        self.servers: list[subprocess.Popen] = []
        self.log = ""
        folder.mkdir(parents=True, exist_ok=True)

    def python(self) -> Path:
        """A fresh Python that sees the packages that are installed here, except the project."""
        home = self.folder / "python"
        if not home.exists():
            venv.create(home, with_pip=False, symlinks=True)
            packages = next((home / "lib").glob("python*/site-packages"))
            # one line of a .pth file: the .pth files in there, as the project's, are not read
            (packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
            for name, module in (("pip", "pip"), ("papermill", "papermill")):
                shim = home / "bin" / name
                shim.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m {module} "$@"\n')
                shim.chmod(0o755)
        return home / "bin"

    def environment(self, **more: str) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST", "JUPYTER", "AZUREML"))}
        return {**kept, "HOME": str(home), "PATH": f"{self.python()}:{os.environ['PATH']}",
                "PIP_NO_BUILD_ISOLATION": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", **more}

    def fetch(self, asset: str, field: str, into: Path) -> Path:
        """Download what a code or model asset points to."""
        resource = self.plane.store[asset.removeprefix(control_plane.ROOT).lower()]
        address = resource["properties"][field]
        if address.startswith("azureml://"):
            path = address.split("/paths/", 1)[1]
            address = (f"http://{self.blobs.host}/{storage.ACCOUNT}/{storage.CONTAINER}/{path}")
        return self.blobs.download(address, into)

    def data(self, address: str, into: Path) -> Path:
        return self.blobs.download(
            f"http://{self.blobs.host}/{storage.ACCOUNT}/{storage.CONTAINER}/"
            + address.split("/paths/", 1)[1], into)

    # -- jobs ---------------------------------------------------------------------------------

    def job(self, name: str, properties: dict, resource: dict) -> str:
        """Execute a command or pipeline job and store its outputs; returns its status."""
        if properties["jobType"] == "Pipeline":
            return self.pipeline(name, properties)
        inputs = {key: entry["value"] for key, entry in properties.get("inputs", {}).items()}
        work = self.folder / name
        outputs = {key: work / "outputs" / key for key in properties.get("outputs", {})}
        processes = 1
        if properties.get("distribution"):
            processes = (properties["resources"]["instanceCount"]
                         * properties["distribution"]["processCountPerInstance"])
        status = self.command(name, properties["codeId"], properties["command"], inputs, outputs,
                              processes, properties.get("environmentVariables") or {})
        properties["written"] = {key: self.blobs.upload(path, f"jobs/{name}/{key}")
                                 for key, path in outputs.items() if any(path.iterdir())}
        return status

    def command(self, name, code, command, inputs, outputs, processes, variables) -> str:
        work = self.folder / name
        snapshot = self.fetch(code, "codeUri", work / "snapshot")
        for path in outputs.values():
            path.mkdir(parents=True, exist_ok=True)
        for kind, values in (("inputs", inputs), ("outputs", outputs)):
            command = re.sub(rf"\$\{{\{{{kind}\.(\w+)\}}\}}", lambda m: str(values[m[1]]), command)
        assert "${{" not in command, command
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = []
        for rank in range(processes):
            together = {} if processes == 1 else {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port}
            ranks.append(subprocess.Popen(
                ["bash", "-c", command], cwd=snapshot, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env=self.environment(
                    AZUREML_RUN_ID=name, MLFLOW_TRACKING_URI=f"sqlite:///{self.folder}/mlflow.db",
                    **variables, **together)))
        printed = [process.communicate(timeout=900)[0] for process in ranks]
        self.log += "\n".join(printed)
        return "Completed" if all(process.returncode == 0 for process in ranks) else "Failed"

    def pipeline(self, name: str, properties: dict) -> str:
        """Run the steps of a pipeline as soon as what they read is there."""
        outputs: dict[str, Path] = {}
        waiting = dict(properties["jobs"])

        def resolve(text: str):
            if found := re.fullmatch(r"\$\{\{parent\.inputs\.(\w+)\}\}", text):
                return properties["inputs"][found[1]]["value"]
            if found := re.fullmatch(r"\$\{\{parent\.jobs\.(\w+)\.outputs\.(\w+)\}\}", text):
                return outputs.get(f"{found[1]}.{found[2]}")
            return text

        while waiting:
            for step, node in list(waiting.items()):
                spec = self.plane.store[node["componentId"].removeprefix(
                    control_plane.ROOT).lower()]["properties"]["componentSpec"]
                inputs = {key: str(entry["default"]) for key, entry in spec["inputs"].items()
                          if "default" in entry}
                inputs |= {key: resolve(entry.get("value", entry.get("uri")))
                           for key, entry in node.get("inputs", {}).items()}
                if None in inputs.values():
                    continue
                made = {key: self.folder / name / step / "outputs" / key
                        for key in spec.get("outputs", {})}
                code = spec["code"].removeprefix("azureml:")
                status = self.command(f"{name}/{step}", code, spec["command"], inputs, made, 1, {})
                if status != "Completed":
                    return status
                outputs |= {f"{step}.{key}": path for key, path in made.items()}
                del waiting[step]
                break
            else:
                raise RuntimeError(f"steps that wait for ever: {sorted(waiting)}")
        properties["written"] = {}
        return "Completed"

    # -- endpoints ----------------------------------------------------------------------------

    def deployment(self, name: str, properties: dict) -> str:
        """Start the inference server on an uploaded snapshot; returns the scoring address."""
        root = self.folder / name  # as on Azure: the snapshot lies in a folder below the root
        self.fetch(properties["codeConfiguration"]["codeId"], "codeUri", root / "snapshot")
        more = dict(properties.get("environmentVariables") or {})
        if model := properties.get("model"):
            more["AZUREML_MODEL_DIR"] = str(self.fetch(model, "modelUri", root / "models" / "1"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = "snapshot/" + properties["codeConfiguration"]["scoringScript"]
        log = (root / "server.log").open("w")
        server = subprocess.Popen(
            [self.python() / "python", "-m", "gunicorn", "-b", f"127.0.0.1:{port}", "--timeout",
             "120", "azureml_inference_server_http.server.entry:app"],
            cwd=root, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=self.environment(AML_APP_ROOT=str(root), AZUREML_ENTRY_SCRIPT=script,
                                 AML_APP_INSIGHTS_ENABLED="false", **more))
        self.servers.append(server)
        until = time.monotonic() + 120
        while time.monotonic() < until and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2)
                return f"http://127.0.0.1:{port}/score"
            except OSError:
                time.sleep(0.2)
        raise control_plane.Refused(
            400, "UserContainerCrash", (root / "server.log").read_text()[-2000:])

    def batch(self, name: str, properties: dict, resource: dict) -> str:
        """Run a batch deployment on the files of one invocation."""
        deployment, work = properties["deployment"], self.folder / name
        code = deployment["codeConfiguration"]
        snapshot = self.fetch(code["codeId"], "codeUri", work / "snapshot")
        model = self.fetch(deployment["model"]["assetId"], "modelUri", work / "model")
        [given] = properties["inputData"].values()
        inputs = self.data(given["uri"], work / "inputs")
        files = sorted(str(path) for path in inputs.rglob("*") if path.is_file())
        (work / "score").mkdir()
        done = subprocess.run(
            [self.python() / "python", "-c", BATCH_DRIVER, snapshot / code["scoringScript"],
             str(deployment["miniBatchSize"]), *files],
            cwd=snapshot, capture_output=True, text=True, timeout=300,
            env=self.environment(AZUREML_MODEL_DIR=str(model), INPUT_FOLDER=str(inputs),
                                 AZUREML_BI_OUTPUT_PATH=str(work / "score"),
                                 **deployment["environmentVariables"]))
        self.log += done.stdout + done.stderr
        if done.returncode:
            return "Failed"
        properties["written"] = {"score": self.blobs.upload(work / "score", f"jobs/{name}")}
        return "Completed"

    def close(self) -> None:
        for server in self.servers:
            try:
                os.killpg(server.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
