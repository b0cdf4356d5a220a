"""No subscription, key, token or host of a real service in any file or notebook output."""

import re
import subprocess

import pytest

from tests.azure.conftest import PROJECT

PATTERNS = {
    "subscription or tenant": r"(?i)\b(?!0{8}-|1{8}-)[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-"
                              r"[89ab][0-9a-f]{3}-[0-9a-f]{12}\b",
    "storage key": r"\b[A-Za-z0-9+/]{86}==",
    "signature of an address": r"[?&]sig=[A-Za-z0-9%+/=]{20,}",
    "JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*",
    "token of the Hub": r"\bhf_[A-Za-z0-9]{30,}",
    "token of GitHub": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "account key": r"AccountKey=[A-Za-z0-9+/=]{20,}",
    "host of a real endpoint": r"[\w-]+\.(?:inference\.ml\.azure|api\.azureml|"
                               r"(?:blob|dfs|file)\.core\.windows|vault\.azure|azurecr)"
                               r"\.(?:com|net|io|ms)\b",
}
BINARY = {".safetensors", ".png", ".parquet", ".ico", ".gz", ".onnx"}


def findings(text: str) -> list[str]:
    return [f"{what}: {found[0][:20]}..." for what, pattern in PATTERNS.items()
            for found in re.finditer(pattern, text)]


def project_files():
    """What git has or would add; everything where there is no git."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT,
                            capture_output=True, text=True)
    if listed.returncode:
        return [path for path in PROJECT.rglob("*") if path.is_file()
                and not {".venv", ".node", "runs"} & set(path.relative_to(PROJECT).parts)]
    return [PROJECT / name for name in listed.stdout.splitlines()]


def test_no_file_holds_a_secret():
    files = [path for path in project_files() if path.is_file() and path.suffix not in BINARY]
    assert len(files) > 50
    found = {}
    for path in files:
        ids = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":  # ids of cells are not secrets
            ids = re.sub(r'"(id|model_id)": "[^"]*"', "", ids)
        if said := findings(ids):
            found[path.relative_to(PROJECT).as_posix()] = said
    assert found == {}


@pytest.mark.parametrize("text", [
    "subscription: 5f0c1a2e" + "-1d3b-4c5d-9e8f-0123456789ab", "A" * 43 + "b" * 43 + "==",
    "https://x/y?sv=1&sig=" + "a" * 40, "eyJhbGciOiJub25l" + ".eyJhdWQiOiJodHRw.x",
    "hf_" + "a" * 34, "ghp_" + "b" * 36, "-----BEGIN " + "PRIVATE KEY-----",
    "subscription: 5F0C1A2E" + "-1D3B-4C5D-9E8F-0123456789AB",
    "https://westeurope.api.azureml" + ".ms/x", "abfss://c@lake.dfs.core" + ".windows.net/x",
    "https://store.file.core" + ".windows.net/x", "AccountKey=" + "c" * 40,
    "https://fill-mask.westeurope.inference.ml.azure" + ".com/score"])
def test_the_test_finds_what_it_looks_for(text):
    assert findings(text)
