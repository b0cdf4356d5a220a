"""Side by side: every way of doing the same work in turn, A B A B, in one run.

Speeds are units per second of wall-clock time. A ratio is taken round by round, between
neighbours in time, so that a machine that slows down slows both sides.
"""

import importlib.metadata
import itertools
import math
import multiprocessing
import os
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import results
from helpers import checkpoints, report


SERVERS = ("mlflow", "azureml-inference-server-http")


class Line(NamedTuple):
    """One measured figure: the median of the rounds, the least and the most of them."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, metric: str, values: Sequence[float]) -> "Line":
        return cls(metric, float(np.median(values)), float(min(values)), float(max(values)))


class Measured(NamedTuple):
    """What a row of the benchmark found: its lines, and on what."""

    task: str
    data: str
    rows: int
    lines: list[Line]
    folder: Path | None = None
    device: str = "cpu"
    split: str = "speed"


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time every side once a round, in turn; the order turns round each time.

    A side is called once before anything is timed. Returns seconds, [rounds] per side.
    """
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def quickest(seconds: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The name with the least median."""
    return min(names, key=lambda name: np.median(seconds[name]))


def speeds(units: float, unit: str, seconds: Mapping[str, Sequence[float]]) -> list[Line]:
    """One line of units per second for each side."""
    return [Line.of(f"{name}: {unit}/s", units / np.array(values))
            for name, values in seconds.items()]


def ratio(seconds: Mapping[str, Sequence[float]], ours: str, theirs: str, of: str) -> Line:
    """How many times faster ours is, from the seconds of each round; `of` names the figure."""
    return Line.of(f"{ours} over {theirs}: {of}",
                   np.array(seconds[theirs]) / np.array(seconds[ours]))


def matmul_rate(precision: str, device: str = "cpu", seconds: float = 1.0) -> float:
    """Floating-point operations per second of this machine's own matrix multiplication.

    512 tokens (on a GPU 16,384) times the feed-forward weight of DistilBERT, 768 x 3,072; the
    median of five spells that share `seconds`. The better of what torch calls by itself and, on
    a processor, of oneDNN.
    """
    import torch

    from helpers import onednn

    dtype = checkpoints.pick_dtype(precision)
    tokens = 512 if device == "cpu" else 16384
    a = torch.randn(tokens, 768, device=device, dtype=dtype)
    weight = torch.randn(3072, 768, device=device, dtype=dtype)
    work = 2 * a.numel() * len(weight)
    by_itself = partial(torch.nn.functional.linear, weight=weight)

    def spell(product: Callable, limit: float) -> float:
        began, count = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < limit or count == 0:
            for _ in range(1 if device == "cpu" else 100):
                product(a)
                count += 1
            if device == "cuda":
                torch.cuda.synchronize()
        return count * work / spent

    with torch.inference_mode():
        spells = [[spell(product, seconds / 10) for _ in range(6)][1:]  # the first warms up
                  for product in (by_itself, onednn.linear(weight, None))]
        return float(max(map(np.median, spells)))


def conditions(memory: Mapping[str, float | Sequence[float]],
               rates: Mapping[str, float] | None = None) -> list[Line]:
    """What every comparison tells beside its speeds.

    The matrix-multiply rate of each number format (fp32 where none is given) and the peak
    memory of each side, in MB: one figure, or one a round.
    """
    rates = rates or {"fp32": matmul_rate("fp32")}
    return [*(Line(f"matrix-multiply rate, {name}, GFLOP/s", rate / 1e9)
              for name, rate in rates.items()),
            *(Line.of(f"{name}: peak memory, MB", np.atleast_1d(values))
              for name, values in memory.items())]


def count_operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix multiplications that `work` does in torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from helpers import onednn

    def linear(x, *_, out_shape, **__):
        return 2 * math.prod(out_shape) * x[-1]

    known = {torch.ops.mkldnn._linear_pointwise: linear} if onednn.available() else {}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        work()
    return counter.get_total_flops()


# ---------------------------------------------------------------- the same answers

def masks(answers: Sequence) -> list[list[dict]]:
    """The candidates of every mask, whether a text has one mask or several."""
    return [mask for row in answers for mask in ([row] if isinstance(row[0], dict) else row)]


def check_same(answers: Sequence, expected: Sequence, most: float = 5e-5,
               tie: float = 1e-6) -> None:
    """Raise RuntimeError where two sides give other candidates, or scores further than `most`.

    Candidates whose scores differ by less than `tie` may change places: rounding orders them.
    """
    for number, (ours, theirs) in enumerate(zip(masks(answers), masks(expected), strict=True)):
        known = {one["token"]: one["score"] for one in theirs}
        for a, b in zip(ours, theirs, strict=True):
            tied = abs(known.get(a["token"], theirs[-1]["score"]) - b["score"]) < tie
            if abs(a["score"] - b["score"]) > most or (a["token"] != b["token"] and not tied):
                raise RuntimeError(f"mask {number}: the sides disagree: {a} and {b}")


# ---------------------------------------------------------------- memory

class Memory:
    """The peak of a process and its children, in bytes, while the block runs."""

    def __init__(self, pid: int | None = None, every: float = 0.05):
        self.process, self.every = psutil.Process(pid), every
        self.peak, self._stop = 0, threading.Event()

    def __enter__(self) -> "Memory":
        self._watch = threading.Thread(target=self._run, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._watch.join()

    def _run(self):
        while True:
            total = 0
            try:
                for process in (self.process, *self.process.children(recursive=True)):
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        pass
            except psutil.Error:
                pass
            self.peak = max(self.peak, total)
            if self._stop.wait(self.every):
                return


@contextmanager
def memory_of_children(peaks: dict[str, float], name: str, work) -> Iterator[Any]:
    """Enter `work`, which starts a process; on leaving, peaks[name] is its peak memory, MB."""
    here = psutil.Process()
    before = {child.pid for child in here.children()}
    with work as result:
        (started,) = (child.pid for child in here.children() if child.pid not in before)
        with Memory(started, every=0.25) as memory:  # seldom: the load runs beside it
            yield result
        peaks[name] = memory.peak / 2**20


def peak_memory(work: Callable[..., Any], *arguments: Any) -> float:
    """Peak resident memory, in MB, of a fresh process that calls `work(*arguments)`.

    `work` must be a function of a module. Raises RuntimeError where it fails.
    """
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    with Memory(process.pid) as memory:
        process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} ended with code {process.exitcode}; see its output")
    return memory.peak / 2**20


def run_command(command: Sequence[str], env: Mapping[str, str] | None = None
                ) -> tuple[float, float, str]:
    """Run a command to its end; return seconds, peak memory in MB, and its output.

    Raises RuntimeError with the end of its messages where it fails.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=messages, cwd=checkpoints.PROJECT,
                                   stdin=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        with Memory(process.pid) as memory:
            process.wait()
        seconds = time.perf_counter() - began
        out.seek(0)
        messages.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[1:4]} ended with code {process.returncode}:\n"
                               f"{messages.read()[-2000:].decode(errors='replace')}")
        return seconds, memory.peak / 2**20, out.read().decode()


# ---------------------------------------------------------------- models and texts

@contextmanager
def base_checkpoint() -> Iterator[Path]:
    """A model of distilbert-base-uncased's exact shape with random weights, while in use.

    Weights decide what the answers are, not how long they take.
    """
    import torch
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

    with tempfile.TemporaryDirectory(prefix="base-shape-") as place:
        torch.manual_seed(0)
        model = DistilBertForMaskedLM(DistilBertConfig())  # the defaults are that shape
        with torch.no_grad():  # spread the scores, so that no two candidates tie
            model.vocab_projector.bias.normal_()
        model.save_pretrained(place)
        AutoTokenizer.from_pretrained(checkpoints.EMBEDDED).save_pretrained(place)
        yield Path(place)


@contextmanager
def checkpoint(name: str) -> Iterator[Path]:
    """The folder of `embedded`, of `base` (random weights), or of a local checkpoint."""
    if name == "base":
        with base_checkpoint() as folder:
            yield folder
    else:
        yield checkpoints.find(name)


def about(name: str) -> str:
    """How results name a checkpoint."""
    return {"embedded": "embedded checkpoint",
            "base": "shape of distilbert-base-uncased, random weights"}.get(name, "own checkpoint")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of the embedded data sets with one word masked each, by position, seeded."""
    import json
    import re

    rng, found = np.random.default_rng(seed), {}
    for path in sorted((checkpoints.PROJECT / "samples" / "data").glob("*/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for sentence in re.split(r"(?<=[.!?])\s+", row.get("context") or row["text"]):
                if len(sentence.split()) >= 4:
                    found[sentence] = None
    texts = list(found)
    order = itertools.islice(itertools.cycle(rng.permutation(len(texts))), count)
    return [mask_word(texts[i], rng) for i in order]


def mask_word(text: str, rng: np.random.Generator) -> str:
    """The text with one of its words, drawn by position, replaced by [MASK]."""
    import re

    places = [match.span() for match in re.finditer(r"\w+", text)]
    if not places:
        return f"{text} [MASK]"
    begin, end = places[rng.integers(len(places))]
    return f"{text[:begin]}[MASK]{text[end:]}"


# ---------------------------------------------------------------- results

def machine(device: str = "cpu") -> str:
    """Processor or GPU, threads, versions and date, for the results' column `hardware`."""
    import torch

    known = report.versions() | {name: importlib.metadata.version(name) for name in SERVERS}
    versions = ", ".join(f"{name} {known[name]}" for name in
                         ("python", "torch", "transformers", *SERVERS))
    threads = "" if device == "cuda" else f", {torch.get_num_threads()} threads"
    kind = "" if device == "cuda" else f", {platform.machine()}"
    return (f"{results.hardware(device)}{kind}{threads}; {versions}; "
            f"{time.strftime('%Y-%m-%d', time.gmtime())}")


def to_results(name: str, measured: Measured, seconds: float, needs_data: bool) -> list[dict]:
    """The rows of results.json for what one benchmark found."""
    command = f"make bench ROW={name}" + (" DATA=folder" if needs_data else "")
    shown = machine(measured.device)
    return [{**results.row(task=measured.task, data=measured.data, split=measured.split,
                           rows=measured.rows, metric=line.metric, value=line.value, low=line.low,
                           high=line.high, seed=0, command=command, seconds=seconds,
                           checkpoint=measured.folder, device=measured.device),
             "hardware": shown} for line in measured.lines]
