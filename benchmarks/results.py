"""The one results file: rows are added or replaced here, and read by README and notebooks."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Collection, Iterable
from pathlib import Path

from helpers import report

FILE = Path(__file__).with_name("results.json")
FIELDS = ["task", "data", "split", "rows", "metric", "value", "low", "high", "seed", "command",
          "hardware", "seconds", "commit", "checkpoint_sha256"]
KEY = ["task", "data", "split", "metric", "seed"]  # one row each, the one measured last


def load(path: Path = FILE) -> list[dict]:
    """All rows, an empty list where there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def row(*, task: str, data: str, split: str, rows: int, metric: str, value: float, command: str,
        seconds: float, low: float | None = None, high: float | None = None,
        seed: int | None = None, checkpoint: Path | None = None, device: str = "cpu") -> dict:
    """One row; hardware, commit and the checkpoint's hash are filled in.

    `low` and `high` are the ends of a 95 % interval, `rows` what the value was measured on.
    Raises ValueError where the command names a path of this machine.
    """
    if re.search(r"(^|[\s=\"'])[/~]", command):
        raise ValueError(f"command: {command!r} names a path of this machine; "
                         "write it as a reader would type it in the project")
    return {"task": task, "data": data, "split": split, "rows": rows, "metric": metric,
            "value": value, "low": low, "high": high, "seed": seed, "command": command,
            "hardware": hardware(device), "seconds": round(seconds, 1), "commit": commit(),
            "checkpoint_sha256": checkpoint and sha256(Path(checkpoint))}


def sha256(checkpoint: Path) -> str:
    """Which weights a checkpoint's folder holds."""
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def add(new: Iterable[dict], path: Path = FILE, instead_of: Collection[str] = ()) -> None:
    """Add rows, each in place of the one that measured the same before (see KEY).

    All older rows of the commands in `instead_of` go, also those that nothing new replaces.
    Raises ValueError where a row lacks a field or has one too many. Not for two writers at once.
    """
    kept = {tuple(r[name] for name in KEY): r for r in load(path)
            if r["command"] not in instead_of}
    for one in new:
        if set(one) != set(FIELDS):
            raise ValueError(f"row {one.get('task')}, {one.get('metric')}: its fields must be "
                             f"{', '.join(FIELDS)}; not so: {sorted(set(one) ^ set(FIELDS))}")
        kept[tuple(one[name] for name in KEY)] = {name: one[name] for name in FIELDS}
    rows = sorted(kept.values(), key=lambda r: [str(r[name]) for name in KEY])
    report.save_json(path, rows)


def hardware(device: str = "cpu") -> str:
    """What the work ran on: the GPU's name, or the processor's and its usable cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpus.read_text()) if cpus.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def commit() -> str | None:
    """The commit that is checked out, with a + where files differ from it; none without git."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=FILE.parent, capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git("rev-parse", "HEAD")[:12] + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
