"""The results file, and the measurement of a checkpoint that fills it."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, DistilBertForMaskedLM

from benchmarks import checkpoint, distillation, results

ROW = {"task": "fill-mask", "data": "x", "split": "test", "rows": 10, "metric": "accuracy",
       "value": 0.5, "seconds": 1.26, "command": "python -m benchmarks.checkpoint --run DIR"}


def test_a_row_is_replaced_by_its_like(tmp_path, tiny_checkpoint):
    path = tmp_path / "results.json"
    first = results.row(**ROW, seed=0, checkpoint=tiny_checkpoint)
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    assert first["checkpoint_sha256"] == hashlib.sha256(weights).hexdigest()
    assert list(first) == results.FIELDS and first["seconds"] == 1.3
    results.add([first, results.row(**ROW, seed=1)], path)
    results.add([{**first, "value": 0.75}], path)
    assert [(r["seed"], r["value"]) for r in results.load(path)] == [(0, 0.75), (1, 0.5)]


def test_bad_rows_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match="names a path of this machine"):
        results.row(**{**ROW, "command": "python -m benchmarks.checkpoint --run /home/me/run"})
    row = results.row(**ROW)
    row.pop("low")
    with pytest.raises(ValueError, match=r"its fields must be .* not so: \['low'\]"):
        results.add([row], path)
    assert results.load(path) == [] and not path.exists()


def test_probes_are_well_formed(tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    probes = [json.loads(line) for line in checkpoint.PROBES.read_text().splitlines()]
    assert len({probe["text"] for probe in probes}) == 50
    assert probes[0] == {"text": "Paris is the [MASK] of France.", "answers": ["capital"]}
    words = set(tokenizer.get_vocab())
    for probe in probes:
        assert probe["text"].count(tokenizer.mask_token) == 1
        assert probe["answers"] and not set(probe["answers"]) - words


def test_a_checkpoint_is_measured(tmp_path, tiny_checkpoint, capsys):
    """A model that always says "the" is right as often as "the" stands there."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = DistilBertForMaskedLM.from_pretrained(tiny_checkpoint)
    the, of = tokenizer.convert_tokens_to_ids(["the", "of"])
    with torch.no_grad():
        model.vocab_projector.bias[the] = 1e4
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    held = rng.choice([the, of, 5000], (300, 32), p=[0.3, 0.2, 0.5]).astype(np.uint16)
    np.save(tmp_path / "held_out.npy", held)
    np.save(tmp_path / "train.npy", np.full((4, 32), of, dtype=np.uint16))
    (tmp_path / "log.jsonl").write_text("".join(
        json.dumps({"tokens": n * 10**6, "loss": 7 - n, "accuracy": n / 10}) + "\n"
        for n in range(1, 4)))
    arguments = ["--run", str(tmp_path), "--checkpoint", str(tmp_path / "model"), "--device",
                 "cpu", "--results", str(tmp_path / "results.json"), "--masked_tokens"]
    checkpoint.main([*arguments, "1000"])
    found = {(r["split"], r["metric"]): r for r in results.load(tmp_path / "results.json")}
    for split in ("80/10/10", "[MASK] only"):
        for metric, share in (("top-1 accuracy", 0.3),
                              ("top-1 accuracy of the most frequent word", 0.2)):
            row = found[split, metric]
            assert row["rows"] == 1000
            assert row["value"] == pytest.approx(share, abs=4 * (share * (1 - share) / 1000)**0.5)
            assert row["low"] < row["value"] < row["high"]
    assert found["all", "accuracy@5"]["rows"] == 50
    said = capsys.readouterr().out
    assert len(re.findall(r"^\| .*\[MASK\].* \|$", said, re.M)) == 50
    assert (tmp_path / "model" / "learning-curve.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="masked tokens are held out, 100,000 asked for"):
        checkpoint.main([*arguments, "100000"])


def test_rows_of_a_longer_distillation(tmp_path, tiny_checkpoint):
    metrics = {"seconds": 5.0, "metrics": {
        "accuracy, teacher": 0.4, "low, teacher": 0.3, "high, teacher": 0.5, "speed": 2.0,
        "masked tokens": 600}, "parameters": {
            "dataset": "corpus", "teacher": str(tiny_checkpoint), "layers": 3, "steps": 7,
            "batch_size": 8, "seed": 0}}
    rows = distillation.rows(metrics, "cpu")
    assert [(r["metric"].split(",")[0], r["value"], r["low"]) for r in rows] == [
        ("top-1 accuracy", 0.4, 0.3), ("speed of the student's encoder", 2.0, None)]
    metrics["parameters"]["dataset"] = "embedded"
    with pytest.raises(ValueError, match="run the notebook with dataset set to a corpus"):
        distillation.rows(metrics, "cpu")
