"""The steps of cli/pipeline.yml beside training: prepare, evaluate, register; and the first
step of cli/notebook-job.yml: check.

    python cli/pipeline_steps.py check --notebook N --parameters SET [-p NAME VALUE ...]

    python cli/pipeline_steps.py prepare --task T --dataset D --output_dir OUT
    python cli/pipeline_steps.py evaluate --task T --dataset DATA --model M --output_dir OUT
    python cli/pipeline_steps.py register --model M --metrics FOLDER --name NAME --output_dir OUT
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers, where not installed

from helpers import parameters, report, runner  # noqa: E402


def check(given):
    """Refuse parameters that a notebook does not have or cannot use, before it starts."""
    notebook = runner.NOTEBOOKS / f"{given.notebook}.ipynb"
    values = runner.from_file(Path(__file__).parent / "parameters" / given.parameters, notebook)
    values.update((name, parameters.literal(value)) for name, value in given.p)
    runner.settings(notebook, values)
    if problem := runner.unpinned(values.get("dataset", "embedded")):
        raise ValueError(f"{given.notebook}: {problem}")


def prepare(given):
    """Check a data set and write its three splits as parquet files."""
    from helpers import data

    splits = data.load(given.dataset, given.task, seed=given.seed)
    folder = report.folder(given.output_dir)
    for name, rows in splits.items():
        rows.to_parquet(folder / f"{name}.parquet")
    print({name: len(rows) for name, rows in splits.items()})


def evaluate(given):
    """Score a trained model on the test split; writes metrics.json."""
    from helpers import data, tasks

    started = time.time()
    module = tasks.module(given.task)
    rows = data.load(given.dataset, given.task)["test"]
    model = module.load(Path(given.model), precision=given.precision)
    metrics = model.evaluate(rows, progress=True)
    headline = f"{module.METRIC} {metrics[module.METRIC]:.4g} on {len(rows)} rows"
    report.save_metrics(given.output_dir, notebook="pipeline", metrics=metrics, started=started,
                        parameters={"task": given.task, "precision": given.precision},
                        headline=headline)
    print(headline)


def register(given):
    """Register a model in the workspace's registry with its metrics as tags."""
    import mlflow

    metrics = json.loads((Path(given.metrics) / "metrics.json").read_text())["metrics"]
    client = mlflow.MlflowClient()
    try:
        client.create_registered_model(given.name)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with mlflow.start_run() as run:  # in a job: the job's own run
        mlflow.log_artifacts(given.model, "model")
        # a folder of safetensors, not a model in MLflow's own format: registered by its place
        model = client.create_model_version(
            given.name, f"{run.info.artifact_uri}/model", run.info.run_id,
            tags={key: str(value) for key, value in metrics.items()})
    report.save_json(report.folder(given.output_dir) / "model.json",
                     {"name": model.name, "version": model.version})
    print(f"azureml:{model.name}:{model.version}")


def main():
    parser = argparse.ArgumentParser(description="The steps of the jobs of cli/.")
    steps = parser.add_subparsers(dest="step", required=True)
    options = steps.add_parser("check", help=check.__doc__)
    for name in ("notebook", "parameters"):
        options.add_argument(f"--{name}", required=True)
    options.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    options.set_defaults(run=check)
    for step, names in ((prepare, ("task", "dataset")), (evaluate, ("task", "dataset", "model")),
                        (register, ("model", "metrics", "name"))):
        options = steps.add_parser(step.__name__, help=step.__doc__)
        for name in (*names, "output_dir"):
            options.add_argument(f"--{name}", required=True)
        options.add_argument("--seed", type=int, default=0)
        options.add_argument("--precision", default="fp32")
        options.set_defaults(run=step)
    given = parser.parse_args()
    try:
        parameters.check(**{name: getattr(given, name) for name in (
            "task", "dataset", "seed", "precision") if hasattr(given, name)})
        given.run(given)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
