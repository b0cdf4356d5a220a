"""The control plane, the storage and the client that the Azure ML tests share."""

import os
import shutil
from pathlib import Path

import pytest

from tests.azure import control_plane, storage

PROJECT = Path(__file__).resolve().parents[2]


def absent(reason: str):
    """Skip, but never where everything must be there."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def schema_folder() -> Path | None:
    """Microsoft's schemas; without them bodies are not validated: see test_schemas_are_there."""
    folder = PROJECT.parent / "shared" / "azure-schemas"
    return folder if folder.exists() else None


@pytest.fixture(scope="session")
def azurite():
    if not (PROJECT / ".node/node_modules/.bin/azurite-blob").exists() and not shutil.which(
            "azurite-blob"):
        absent("needs azurite: npm install --prefix .node azurite")
    server = storage.Azurite(PROJECT)
    yield server
    server.close()


@pytest.fixture(scope="package")  # gone before the notebooks are tested: see the last patch
def running_plane(azurite, schema_folder, tmp_path_factory):
    from azure.ai.ml.constants import _common

    from helpers import workspace

    patch = pytest.MonkeyPatch()
    patch.setitem(_common.STORAGE_ACCOUNT_URLS, "AzureBlob", f"http://{azurite.host}/{{}}")
    patch.setattr(_common.LROConfigurations, "POLL_INTERVAL", 0.02)
    patch.setattr(workspace, "PAUSE", 0.05)
    patch.setattr(workspace, "PATIENCE", 60.0)
    # MLClient writes its cloud's name here, and other processes would look for that cloud.
    patch.setenv(_common.AZUREML_CLOUD_ENV_NAME, "AzureCloud")
    plane = control_plane.ControlPlane(tmp_path_factory.mktemp("plane"), azurite, schema_folder)
    yield plane
    plane.close()
    patch.undo()


@pytest.fixture(scope="package")
def client(running_plane):
    from helpers import workspace

    return workspace.connect(control_plane.SUBSCRIPTION, control_plane.GROUP,
                             control_plane.WORKSPACE, credential=control_plane.Credential(),
                             **running_plane.connection())


@pytest.fixture
def plane(running_plane, client):
    """The control plane, empty; whatever a test does, every body it PUT must be valid."""
    running_plane.reset()
    yield running_plane
    running_plane.fault = None
    assert running_plane.invalid == []


@pytest.fixture(scope="session")
def small_code(tmp_path_factory) -> Path:
    """A snapshot of one scoring script, for what is not about its content."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("score_online.py", "score_batch.py"):
        path = folder / "cli" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("def init():\n    pass\n\n\ndef run(body):\n    return body\n")
    return folder
