"""Start: `import helpers`, the first answer from a cold start, and where its time goes."""

import sys
import time
from pathlib import Path

from benchmarks import harness, online
from benchmarks.harness import Line, Measured
from helpers.serving import SCRIPT, local_server

TEXT = "Paris is the [MASK] of France."
# Each stage of a cold start, printed as the seconds that it took; the last line is the answer.
CLOCK = "import time; t = time.perf_counter()\n"
STAGE = "print({name!r}, time.perf_counter() - t); t = time.perf_counter()\n"
OURS = [("import helpers", "import helpers"), ("import torch", "import torch"),
        ("import helpers.fill_mask", "from helpers import fill_mask"),
        ("load the model", "fill = fill_mask.load({folder!r}, 'cpu')"),
        ("first answer", "answer = fill([{text!r}])[0][0]")]
THEIRS = [("import torch", "import torch"),
          ("import transformers.pipeline", "from transformers import pipeline"),
          ("load the model", "pipe = pipeline('fill-mask', model={folder!r}, device='cpu', "
           "dtype=torch.float32)"),
          ("first answer", "answer = pipe({text!r})[0]")]


def program(stages, folder: Path) -> str:
    """The stages as one Python program that prints the time of each."""
    lines = [code.format(folder=str(folder), text=TEXT) + "\n" + STAGE.format(name=name)
             for name, code in stages]
    return CLOCK + "".join(lines) + "print(answer['token'])\n"


def cold_start(stages, folder: Path) -> tuple[float, dict[str, float], int, float]:
    """Seconds in all (Python's own start included) and by stage, the answer, peak MB."""
    seconds, memory, output = harness.run_command([sys.executable, "-c", program(stages, folder)])
    *spent, token = output.split("\n")[:-1]
    by_stage = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in spent}
    return seconds, by_stage, int(token), memory


def server_start(folder: Path, script: Path) -> float:
    """Seconds until a server is ready and has answered its first request."""
    began = time.perf_counter()
    with local_server(folder, script) as url, online.session() as session:
        online.post(session, url + "/score", online.request_body(TEXT))
        return time.perf_counter() - began


def run(model: str = "embedded", rounds: int = 3) -> list[Measured]:
    """Cold starts in fresh processes, in turn; where the time goes, stage by stage."""
    with harness.checkpoint(model) as folder:
        return [Measured("start", f"one sentence, {harness.about(model)}", 1,
                         starts(folder, rounds), folder if model == "embedded" else None)]


def starts(folder: Path, rounds: int) -> list[Line]:
    """The lines of `run` for the checkpoint in this folder."""
    sides = {"ours": OURS, "pipeline": THEIRS}
    totals: dict[str, list] = {name: [] for name in sides}
    stages: dict[tuple, list] = {}
    memory: dict[str, list] = {name: [] for name in sides}
    server: dict[str, list] = {name: [] for name in sides}
    tokens = set()
    scripts = {"ours": SCRIPT, "pipeline": online.PIPELINE_SCRIPT}
    for number in range(rounds + 1):  # the first only fills the disk's cache
        for name in sides if number % 2 else reversed(sides):
            seconds, spent, token, peak = cold_start(sides[name], folder)
            tokens.add(token)
            if number:
                totals[name].append(seconds)
                memory[name].append(peak)
                server[name].append(server_start(folder, scripts[name]))
                for stage, value in spent.items():
                    stages.setdefault((name, stage), []).append(value)
    if len(tokens) != 1:
        raise RuntimeError(f"start: the sides gave different answers, tokens {tokens}")
    lines = [Line.of(f"{name}: {stage}, s", values) for (name, stage), values in stages.items()]
    for name in sides:
        lines += [Line.of(f"{name}: first answer of a fresh process, s", totals[name]),
                  Line.of(f"{name}: first answer of a fresh server, s", server[name])]
    return [*lines, *harness.conditions(memory),
            harness.ratio(totals, "ours", "pipeline", "first answer of a fresh process, s"),
            harness.ratio(server, "ours", "pipeline", "first answer of a fresh server, s")]
