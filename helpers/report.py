"""Results of a notebook: metrics.json, MLflow where it is configured, one style of plots."""

import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
# Okabe and Ito 2008: distinguishable with every common colour vision.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]


def folder(output_dir: str | Path) -> Path:
    """Make and return the folder of results; a relative one lies in the project."""
    path = Path(output_dir).expanduser()
    path = path if path.is_absolute() else PROJECT / path
    path.mkdir(parents=True, exist_ok=True)
    return path


def save_json(path: Path, content: Any) -> Path:
    """Write JSON aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, path)
    return path


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    names = ("torch", "transformers", "tokenizers", "datasets", "numpy")
    return {"python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in names}}


def save_metrics(output_dir: str | Path, *, notebook: str, parameters: Mapping[str, Any],
                 metrics: Mapping[str, Any], headline: str, started: float) -> Path:
    """Write metrics.json; also log to MLflow where MLFLOW_TRACKING_URI is set.

    `headline` is one short line for people; `started` is time.time() at the notebook's start.
    Returns the file's path.
    """
    content = {"notebook": notebook, "parameters": dict(parameters), "metrics": dict(metrics),
               "headline": headline, "seconds": round(time.time() - started, 1),
               "versions": versions()}
    path = save_json(folder(output_dir) / "metrics.json", content)
    if os.environ.get("MLFLOW_TRACKING_URI"):
        log_to_mlflow(content)
    return path


def log_to_mlflow(content: Mapping[str, Any]) -> None:
    """Log one metrics.json to the MLflow run in force, or to a new one."""
    import mlflow

    def name(text: str) -> str:  # MLflow refuses all other characters
        return re.sub(r"[^\w .\-/]", "_", text)

    numbers = {name(k): float(v) for k, v in content["metrics"].items()
               if isinstance(v, (int, float)) and not isinstance(v, bool)}
    inside = mlflow.active_run() is not None
    run = mlflow.active_run() or mlflow.start_run(run_name=content["notebook"])
    mlflow.log_params({name(k): v for k, v in content["parameters"].items()})
    mlflow.log_metrics(numbers)
    mlflow.set_tag("headline", content["headline"])
    if not inside and run:
        mlflow.end_run()


def bar(items=None, show: bool = True, **options):
    """A tqdm progress bar, unless TQDM_DISABLE is set: tqdm heeds that outside notebooks only."""
    from tqdm.auto import tqdm

    return tqdm(items, disable=not show or bool(os.environ.get("TQDM_DISABLE")), **options)


def style() -> None:
    """Set the house style of plots."""
    import matplotlib as mpl

    mpl.rcParams.update({
        "axes.prop_cycle": mpl.cycler(color=PALETTE), "axes.spines.top": False,
        "axes.spines.right": False, "axes.titlelocation": "left", "axes.grid": True,
        "grid.alpha": 0.25, "figure.figsize": (7, 3.2), "figure.dpi": 100,
        "figure.constrained_layout.use": True, "figure.facecolor": "white",
        "axes.facecolor": "white", "legend.frameon": False, "font.size": 10,
    })
