"""environment.yml is the single source of the direct pins; all else is in step with it."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys

import yaml

from tests.conftest import PROJECT

LINES = [line for line in (PROJECT / "environment.yml").read_text().splitlines()
         if re.match(r" {6}- ", line)]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines) -> dict[str, str]:
    return {normal(name): version for name, version in
            (line.split("==") for line in lines)}


def direct() -> dict[str, str]:
    content = yaml.safe_load((PROJECT / "environment.yml").read_text())
    return pins(content["dependencies"][-1]["pip"])


def locked() -> dict[str, str]:
    lines = (PROJECT / "requirements.lock").read_text().splitlines()
    return pins(line for line in lines if line and not line.startswith("#"))


def test_every_direct_pin_says_who_needs_it():
    for line in LINES:
        assert re.fullmatch(r" {6}- [A-Za-z0-9_.-]+==[^ ]+  # \S.*", line), line


def test_the_lock_holds_every_direct_pin():
    assert {name: locked().get(name) for name in direct()} == direct()


def test_the_lock_is_what_is_installed():
    for name, version in locked().items():
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_the_lock_is_complete():
    """Whatever a locked package requires here is locked too."""
    from packaging.requirements import Requirement

    known = locked()
    for name in known:
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            if normal(need.name) in ("setuptools", "pip"):
                continue
            assert normal(need.name) in known, f"{name} needs {need.name}, which is not locked"
            assert need.specifier.contains(known[normal(need.name)], prereleases=True), (name, text)


def test_whatever_we_import_is_pinned():
    owners = importlib.metadata.packages_distributions()
    ours = {"helpers", "tests", "cli", "benchmarks", "score_online", "score_batch"}
    for place in ("helpers", "cli", "tests", "benchmarks"):
        for path in (PROJECT / place).rglob("*.py"):
            ours.add(path.stem)
    strangers = set()
    for place in ("helpers", "cli", "tests", "benchmarks"):
        for path in (PROJECT / place).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module]
                for name in names:
                    top = name.split(".")[0]
                    if top in sys.stdlib_module_names or top in ours:
                        continue
                    if not {normal(owner) for owner in owners.get(top, [])} & set(direct()):
                        strangers.add(f"{path.name} imports {name}")
    assert not strangers, f"not pinned in environment.yml: {sorted(strangers)}"


def test_pyproject_python_and_environment_agree():
    text = (PROJECT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.11,<3.13"' in text
    content = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert content["dependencies"][0] in ("python=3.11", "python=3.12")


def run_setup(tmp_path, programs: dict[str, str]):
    """Run .ci/setup with nothing on the PATH but the given stand-ins."""
    place = tmp_path / "bin"
    place.mkdir()
    for name, body in programs.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    for tool in ("bash", "rm", "env"):
        (place / tool).symlink_to(f"/usr/bin/{tool}")
    return subprocess.run(["bash", str(PROJECT / ".ci" / "setup"), str(tmp_path / "venv")],
                          env={"PATH": str(place)}, capture_output=True, text=True, cwd=PROJECT)


def test_no_fitting_python_is_one_clear_sentence(tmp_path):
    answer = run_setup(tmp_path, {"python3": "exit 1"})
    assert answer.returncode == 1 and answer.stdout == ""
    assert answer.stderr.strip().startswith("No Python 3.11 or 3.12 was found; install one")
    assert len(answer.stderr.strip().splitlines()) == 1


def test_no_venv_module_is_one_clear_sentence(tmp_path):
    answer = run_setup(tmp_path, {
        "python3": 'case "$2" in *venv*) exit 1;; esac; exit 0'})
    assert answer.returncode == 1 and answer.stdout == ""
    assert "lacks the venv module; install it" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_no_path_of_a_machine_in_any_file():
    """No committed text names somebody's home, a registry host or a credential's value."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT,
                            capture_output=True, text=True)
    if listed.returncode:
        files = [p for p in PROJECT.rglob("*") if p.is_file()]
    else:
        files = [PROJECT / name for name in listed.stdout.splitlines()]
    home = re.compile("|".join([r"/ro" + r"ot/", r"/wo" + r"rk/", r"/opt/py" + "pi"]))
    for path in files:
        if path.suffix in (".safetensors", ".png") or not os.path.exists(path):
            continue
        found = home.search(path.read_text(encoding="utf-8", errors="replace"))
        assert not found, f"{path.relative_to(PROJECT)}: {found[0]}"
