"""Online: latency and throughput of real servers on loopback, with 1, 8 and 32 clients.

The managed online endpoint's own server with our scoring script, with one worker and with two
that have a core each; the same server with a script that calls the pipeline
(pipeline_score.py); and `mlflow models serve` of the same model. mlflow answers with the first
word alone, without score or sequence: less work than ours.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import requests

from benchmarks import harness
from benchmarks.harness import Line, Measured
from helpers.serving import SCRIPT, local_server

PIPELINE_SCRIPT = Path(__file__).with_name("pipeline_score.py")
TOP_K = 5
CLIENTS = (1, 8, 32)
TWO_WORKERS = {"WORKER_COUNT": "2", "OMP_NUM_THREADS": "1"}
PERCENTILES = (50, 95, 99)


def session() -> requests.Session:
    """One client's connection; a proxy does not lead to loopback."""
    result = requests.Session()
    result.trust_env = False
    return result


def request_body(text: str) -> dict:
    """The card's request with one text."""
    return {"inputs": {"input_string": [text]}, "parameters": {"top_k": TOP_K}}


def post(client: requests.Session, url: str, body: dict):
    """Post one request and return the answer; raises requests.HTTPError where it failed."""
    response = client.post(url, json=body, timeout=300)
    response.raise_for_status()
    return response.json()


@contextmanager
def mlflow_server(folder: Path, timeout: float = 300) -> Iterator[str]:
    """Serve a checkpoint's pipeline by `mlflow models serve`; yield its address."""
    with tempfile.TemporaryDirectory(prefix="mlflow-server-") as place:
        saved, log = Path(place, "model"), Path(place, "server.log")
        save = ("import sys, mlflow, transformers\n"
                "pipe = transformers.pipeline('fill-mask', model=sys.argv[1], dtype='float32')\n"
                "mlflow.transformers.save_model(pipe, sys.argv[2], pip_requirements=['mlflow'])\n")
        harness.run_command([sys.executable, "-c", save, str(folder), str(saved)])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with open(log, "wb") as sink:
            server = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(saved), "-h",
                 "127.0.0.1", "-p", str(port), "--env-manager", "local"], cwd=place,
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True, env={**os.environ, "PATH": os.pathsep.join(
                    [str(Path(sys.executable).parent), os.environ.get("PATH", "")])})
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + timeout
            with session() as client:
                while True:
                    try:
                        if client.get(url + "/ping", timeout=5).ok:
                            break
                    except requests.RequestException:
                        pass
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("mlflow's server did not come up:\n"
                                           + log.read_text(errors="replace")[-2000:])
                    time.sleep(0.2)
            yield url
        finally:
            try:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
            finally:
                try:
                    os.killpg(server.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                server.wait()


class Load(threading.Thread):
    """One client: takes the next request until none is left; keeps seconds and failures."""

    def __init__(self, url: str, bodies: Iterator[dict]):
        super().__init__(daemon=True)
        self.url, self.bodies, self.seconds, self.failures = url, bodies, [], []

    def run(self):
        with session() as client:
            for body in self.bodies:
                began = time.perf_counter()
                try:
                    post(client, self.url, body)
                except (requests.RequestException, ValueError) as error:
                    self.failures.append(f"{type(error).__name__}: {error}"[:200])
                self.seconds.append(time.perf_counter() - began)


class _Shared:
    """An iterator that several threads may take from."""

    def __init__(self, items: Sequence):
        self.items, self.lock = iter(items), threading.Lock()

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            return next(self.items)


def load_test(url: str, bodies: Sequence[dict], clients: int) -> dict:
    """Send all requests from so many clients at once: latencies in ms, requests/s, failures."""
    shared = _Shared(bodies)
    threads = [Load(url, shared) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - began
    latencies = np.concatenate([thread.seconds for thread in threads if thread.seconds])
    return {"latencies": latencies * 1000, "requests/s": len(bodies) / total,
            "failures": [failure for thread in threads for failure in thread.failures]}


def check(servers: dict[str, tuple[str, callable]], texts: Sequence[str]) -> None:
    """Raise RuntimeError where two servers answer the same text differently.

    Ours and the pipeline's by all candidates and their scores, mlflow's by its first word.
    """
    with session() as client:
        for text in texts:
            answers = {name: post(client, url, body(text))
                       for name, (url, body) in servers.items()}
            harness.check_same(answers["ours"], answers["pipeline"])
            first = answers["pipeline"][0][0]["token_str"], answers["mlflow"]["predictions"][0]
            if len(set(first)) != 1:
                raise RuntimeError(f"online: pipeline and mlflow disagree on {text!r}: {first}")


def percentile(parts: Sequence[np.ndarray], percent: int, metric: str) -> Line:
    """A percentile of the latencies of all rounds, with the lowest and highest of one round."""
    value = float(np.percentile(np.concatenate(parts), percent))
    rounds = [float(np.percentile(part, percent)) for part in parts]
    return Line(metric, value, min(*rounds, value), max(*rounds, value))


def run(model: str = "embedded", requests_each: int = 100, rounds: int = 3,
        clients: Sequence[int] = CLIENTS) -> list[Measured]:
    """Latency in milliseconds and requests per second; the servers take turns, idle between.

    Latencies of all rounds are taken together, so that a p99 rests on `rounds` times
    `requests_each` requests.
    """
    texts, memory = harness.sentences(requests_each), {}
    with ExitStack() as stack:
        folder = stack.enter_context(harness.checkpoint(model))

        def start(name: str, server) -> str:
            return stack.enter_context(harness.memory_of_children(memory, name, server))

        servers = {
            "ours": (start("ours", local_server(folder, SCRIPT)) + "/score", request_body),
            "ours, 2 workers": (start("ours, 2 workers", local_server(
                folder, SCRIPT, env=TWO_WORKERS)) + "/score", request_body),
            "pipeline": (start("pipeline", local_server(folder, PIPELINE_SCRIPT)) + "/score",
                         request_body),
            "mlflow": (start("mlflow", mlflow_server(folder)) + "/invocations",
                       lambda text: {"inputs": [text]})}
        check(servers, texts[:20])
        found: dict[tuple, list] = {}
        failures: dict[str, list] = {name: [] for name in servers}
        for number in range(rounds):
            for count in clients:
                for name in servers if number % 2 == 0 else reversed(servers):
                    if count == 1 and name == "ours, 2 workers":
                        continue  # one client keeps one of them busy
                    url, body = servers[name]
                    result = load_test(url, [body(text) for text in texts], count)
                    failures[name] += result.pop("failures")
                    for metric, value in result.items():
                        found.setdefault((name, count, metric), []).append(value)
    lines = []
    for (name, count, metric), values in found.items():
        side = f"{name}, {count} clients"
        lines += [Line.of(f"{side}: requests/s", values)] if metric == "requests/s" else \
            [percentile(values, percent, f"{side}: p{percent}, ms") for percent in PERCENTILES]
    for count in clients:
        for mine, name in itertools.product(("ours", "ours, 2 workers"), ("pipeline", "mlflow")):
            if (mine, count, "latencies") not in found:
                continue
            ours, theirs = (np.array([np.median(part) for part in found[side, count, "latencies"]])
                            for side in (mine, name))
            pair = f"{mine}, {count} clients over {name}, {count} clients"
            lines.append(Line.of(f"{pair}: p50, ms", theirs / ours))
            ours, theirs = (np.array(found[side, count, "requests/s"]) for side in (mine, name))
            lines.append(Line.of(f"{pair}: requests/s", ours / theirs))
    lines += [Line(f"{name}: failed requests", len(failed)) for name, failed in failures.items()]
    lines += harness.conditions(memory)
    return [Measured("online", f"embedded sentences, {harness.about(model)}", requests_each, lines,
                     folder if model == "embedded" else None)]
