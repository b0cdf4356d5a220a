"""The local inference server as a context manager: the one that managed online endpoints run.

`azmlinfsrv` itself binds every interface; here its application runs under gunicorn, as it does
there, on a loopback port that no other process can take in between.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests

from helpers.checkpoints import PROJECT

APPLICATION = "azureml_inference_server_http.server.entry:app"
SCRIPT = PROJECT / "cli" / "score_online.py"


class ServerError(RuntimeError):
    """The server did not come up or has ended; the message carries the end of its log."""


@contextmanager
def local_server(checkpoint: str | Path = "embedded", script: str | Path = SCRIPT,
                 env: Mapping[str, str] | None = None, timeout: float = 120,
                 log: str | Path | None = None) -> Iterator[str]:
    """Serve a checkpoint on loopback; yield the address, such as http://127.0.0.1:43210.

    POST requests to address + "/score"; "/swagger.json" describes them. `env` adds settings
    such as PRECISION, MAX_TEXTS, MAX_TOKENS, OMP_NUM_THREADS or WORKER_COUNT (processes, each
    with the model, that answer side by side); `timeout` is in seconds, to the first healthy
    answer; `log` keeps the server's output in a file. The server and its workers are gone when
    the block ends, however it ends. Raises ServerError where `init` fails.
    """
    if Path(checkpoint).expanduser().is_dir():
        checkpoint = Path(checkpoint).expanduser().resolve()
    with tempfile.TemporaryDirectory(prefix="local-server-") as root:
        output = Path(log) if log else Path(root, "server.log")
        server = None
        # The socket is bound here and inherited: asking for a free port and binding it later
        # would leave a gap in which another process can take it.
        with socket.create_server(("127.0.0.1", 0)) as listener, open(output, "wb") as sink:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            try:
                server = subprocess.Popen(
                    [sys.executable, "-m", "helpers.serving", str(listener.fileno())],
                    cwd=root, env=_environment(root, checkpoint, script, env or {}),
                    stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                    pass_fds=[listener.fileno()], start_new_session=True)
                listener.close()  # from here on, a server that ended refuses connections
                _wait_until_healthy(server, url, timeout, output)
                yield url
            finally:
                if server is not None:
                    _end(server)


def _environment(root: str, checkpoint: str | Path, script: str | Path,
                 env: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment without another deployment's settings, plus this server's."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith(("AML_", "AZUREML_MODEL_DIR", "AZUREML_CONFIG_FILE",
                                         "WORKER_COUNT"))}
    return {**inherited, "PYTHONUNBUFFERED": "1", "TMPDIR": root, "AML_APP_ROOT": root,
            "AML_APP_INSIGHTS_ENABLED": "false", "CHECKPOINT": str(checkpoint),
            "AZUREML_ENTRY_SCRIPT": str(Path(script).resolve()), **env}


def _wait_until_healthy(server: subprocess.Popen, url: str, timeout: float, log: Path) -> None:
    deadline = time.monotonic() + timeout
    with requests.Session() as session:
        session.trust_env = False  # a proxy does not lead to loopback
        while server.poll() is None:
            try:
                if session.get(url, timeout=1).ok:
                    return
            except requests.RequestException:
                pass
            if time.monotonic() > deadline:
                raise ServerError(f"the inference server was not ready after {timeout:g} seconds; "
                                  f"give it more with timeout=, or read why:\n{_tail(log)}")
            time.sleep(0.05)
    raise ServerError(f"the inference server ended with code {server.returncode} before it was "
                      f"ready; the end of its log:\n{_tail(log)}")


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _end(server: subprocess.Popen, grace: float = 5) -> None:
    """End the whole process group, politely first, and collect the server."""
    try:
        for wish in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, wish)
                server.wait(grace)
            except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                pass
    except BaseException:  # an interrupt while waiting: no more patience
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        raise
    finally:
        server.wait()


def _serve(listener: str) -> None:
    """Become gunicorn on an inherited socket (what `python -m helpers.serving` does)."""
    from gunicorn.app.wsgiapp import WSGIApplication

    if sys.platform == "linux":  # end with the notebook, even if that is killed
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    sys.argv = ["gunicorn", "--bind", f"fd://{listener}", "--timeout", "300",
                "--workers", os.environ.get("WORKER_COUNT", "1"),
                "--graceful-timeout", "2", "--no-control-socket", APPLICATION]
    WSGIApplication("%(prog)s [OPTIONS] [APP_MODULE]").run()


if __name__ == "__main__":
    _serve(sys.argv[1])
