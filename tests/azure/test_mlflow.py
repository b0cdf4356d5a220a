"""What a notebook logs to MLflow, read back from a real store: jobs have one."""

import mlflow

from helpers import report

CONTENT = {"notebook": "knowledge-distillation", "headline": "accuracy 0.4, distilled",
           "parameters": {"seed": 1, "revision": None},
           "metrics": {"accuracy, distilled": 0.4, "student parameters, M": 4.3,
                       "accuracy@5 (all)": 0.7, "loss/test": 1.5, "best": True, "words": "few"}}


def test_names_that_mlflow_refuses_are_logged_under_others(tmp_path, monkeypatch):
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        report.log_to_mlflow(CONTENT)
        client = mlflow.MlflowClient()
        [run] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    finally:
        mlflow.set_tracking_uri(None)
    assert run.data.metrics == {"accuracy_ distilled": 0.4, "student parameters_ M": 4.3,
                                "accuracy_5 _all_": 0.7, "loss/test": 1.5}
    assert run.data.params == {"seed": "1", "revision": "None"}
    assert run.data.tags["headline"] == CONTENT["headline"] and run.info.status == "FINISHED"
