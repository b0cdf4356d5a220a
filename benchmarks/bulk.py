"""Fill-mask in bulk: helpers.fill_mask against transformers' pipeline at its best batch size.

int8 is measured here and kept out of the helpers: see benchmarks/int8.py for why.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import pipeline

from benchmarks import harness, int8
from benchmarks.harness import Line, Measured
from helpers import fill_mask

BATCH_SIZES = (1, 8, 16, 32)
TOP_K = 5


def load_pipeline(folder: Path):
    """transformers' own fill-mask pipeline, float32, as its documentation shows it."""
    return pipeline("fill-mask", model=str(folder), dtype=torch.float32, device="cpu")


def sides(folder: Path, texts: list[str], precisions) -> dict:
    """Every way of filling the texts; each call returns the pipeline's nested answer."""
    pipe = load_pipeline(folder)
    result = {f"pipeline, batches of {size}":
              lambda size=size: pipe(texts, batch_size=size, top_k=TOP_K) for size in BATCH_SIZES}
    for precision in precisions:
        fill = int8.load(folder) if precision == "int8" else fill_mask.load(folder, "cpu",
                                                                            precision)
        result[f"ours, {precision}"] = lambda fill=fill: fill(texts, top_k=TOP_K)
    return result


def differences(answers: list, expected: list) -> tuple[float, float]:
    """The largest difference of two scores at one rank, and the share of equal first tokens."""
    pairs = list(zip(harness.masks(answers), harness.masks(expected), strict=True))
    return (max(abs(a["score"] - b["score"]) for x, y in pairs for a, b in zip(x, y, strict=True)),
            float(np.mean([x[0]["token"] == y[0]["token"] for x, y in pairs])))


def _once(kind: str, folder: str, texts: list[str], size: int) -> None:
    """One whole run in a process of its own, whose memory is watched."""
    if kind == "pipeline":
        load_pipeline(Path(folder))(texts, batch_size=size, top_k=TOP_K)
    elif kind == "int8":
        int8.load(Path(folder))(texts, top_k=TOP_K)
    else:
        fill_mask.load(folder, "cpu", kind)(texts, top_k=TOP_K)


def run(model: str = "embedded", texts: int = 300, rounds: int = 5,
        precisions=("fp32", "bf16", "int8")) -> list[Measured]:
    """Texts per second, ratios, shares of the matrix-multiply rate, and peak memory.

    Raises RuntimeError where fp32 does not give the pipeline's candidates, scores within 5e-5.
    """
    batch = harness.sentences(texts)
    with harness.checkpoint(model) as folder:
        ways = sides(folder, batch, precisions)
        seconds = harness.alternate(ways, rounds)
        theirs = harness.quickest(seconds, [name for name in ways if name.startswith("pipeline")])
        expected = ways[theirs]()
        operations = harness.count_operations(ways["ours, fp32"]) if "fp32" in precisions else 0
        lines = harness.speeds(texts, "texts", seconds)
        rates = {precision: harness.matmul_rate(precision) for precision in precisions
                 if precision != "int8"}  # torch has no plain int8 product to compare
        for precision in precisions:
            ours = f"ours, {precision}"
            lines.append(harness.ratio(seconds, ours, theirs, "texts/s"))
            answers = ways[ours]()
            if precision == "fp32":
                harness.check_same(answers, expected)
            error, agree = differences(answers, expected)
            lines += [Line(f"{ours}: largest difference of a score", error),
                      Line(f"{ours}: same first word", agree)]
            if operations and precision in rates:
                lines.append(Line.of(f"{ours}: share of that rate", operations / rates[precision]
                                     / np.array(seconds[ours])))
        size = int(theirs.rsplit(" ", 1)[1])
        lines += harness.conditions(
            {theirs if kind == "pipeline" else f"ours, {kind}": harness.peak_memory(
                _once, kind, str(folder), batch, size) for kind in ("pipeline", *precisions)},
            rates)
        return [Measured("fill-mask in bulk", f"embedded sentences, {harness.about(model)}", texts,
                         lines, folder if model == "embedded" else None)]


def on_gpu(texts: int = 20_000, rounds: int = 5) -> list[Measured]:
    """Tokens per second in bulk at bf16 on a GPU, and the share of its matrix-multiply rate."""
    if not torch.cuda.is_available():
        raise RuntimeError("gpu: this machine has no CUDA device; run this row where there is one")
    found = []
    for model in ("embedded", "base"):
        with harness.checkpoint(model) as folder:
            fill = fill_mask.load(folder, "cuda", "bf16")
            ids = fill.encode(harness.sentences(texts))

            def work(fill=fill, ids=ids):
                for _ in fill.masked_logits(ids):
                    pass
                torch.cuda.synchronize()

            seconds = harness.alternate({"ours, bf16": work}, rounds)
            rate = harness.matmul_rate("bf16", "cuda")
            tokens, took = sum(map(len, ids)), np.array(seconds["ours, bf16"])
            found.append(Measured(
                "fill-mask in bulk, GPU", f"embedded sentences, {harness.about(model)}", texts, [
                    Line.of("ours, bf16: tokens/s", tokens / took),
                    Line("matrix-multiply rate, bf16, GFLOP/s", rate / 1e9),
                    Line.of("ours, bf16: share of that rate",
                            harness.count_operations(work) / rate / took)],
                folder if model == "embedded" else None, "cuda"))
    return found
