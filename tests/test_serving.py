"""The inference server as a context manager: real processes, started and ended every way."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
import requests

from helpers import serving

ECHO = """
import os, sys
def init():
    print("hello from", "init")
def run(body):
    return [body, os.getcwd(), os.environ.get("ANSWER"), os.environ.get("OMP_NUM_THREADS")]
"""


@pytest.fixture
def script(tmp_path):
    def write(text: str = ECHO) -> Path:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return path
    return write


def started_by(process: psutil.Process) -> list[psutil.Process]:
    return process.children(recursive=True)


@pytest.fixture
def mine():
    """Processes that this test started; at its end none may be left, not even a zombie."""
    before = set(started_by(psutil.Process()))
    yield lambda: [one for one in started_by(psutil.Process()) if one not in before]
    assert [one for one in started_by(psutil.Process()) if one not in before] == []


def test_workers_are_as_many_as_asked(script, mine, monkeypatch):
    monkeypatch.setenv("WORKER_COUNT", "5")  # another deployment's
    for env, count in (({}, 1), ({"WORKER_COUNT": "2"}, 2)):
        with serving.local_server("nowhere", script(), env):
            deadline = time.monotonic() + 60
            while len(mine()) != 1 + count and time.monotonic() < deadline:
                time.sleep(0.1)
            assert len(mine()) == 1 + count  # gunicorn and its workers


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=20)[1]


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def test_it_serves_on_loopback_only_and_is_gone_afterwards(script, mine, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("AZUREML_MODEL_DIR", "/another/deployment")
    with serving.local_server("nowhere", script(), {"ANSWER": "42", "OMP_NUM_THREADS": "1"}) as url:
        session = requests.Session()
        session.trust_env = False
        assert session.get(url, timeout=30).text == "Healthy"
        body, cwd, answer, threads = session.post(
            url + "/score", data=b"[1]", headers={"Content-Type": "application/json"},
            timeout=30).json()
        assert (body, answer, threads) == ("[1]", "42", "1")
        processes = mine()
        assert len(processes) == 2  # gunicorn and its worker
        listening = {(c.laddr.ip, c.laddr.port) for one in processes
                     for c in one.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert listening == {("127.0.0.1", int(url.rsplit(":", 1)[1]))}
        assert all("AZUREML_MODEL_DIR" not in one.environ() for one in processes)
    assert gone(processes) and refuses(url) and not Path(cwd).exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_ends_with_the_block_however_the_block_ends(script, mine, error):
    with pytest.raises(error):
        with serving.local_server("nowhere", script()) as url:
            processes = mine()
            raise error("in the block")
    assert gone(processes) and refuses(url)


def test_two_servers_have_two_ports(script, mine):
    with serving.local_server("nowhere", script()) as one, \
            serving.local_server("nowhere", script()) as other:
        assert one != other
        assert requests.get(one, timeout=30).ok and requests.get(other, timeout=30).ok


def test_a_failing_init_is_told_with_the_log(script, mine):
    broken = script("""
        def init():
            raise OSError("the weights are on the moon")
        def run(body):
            pass
    """)
    with pytest.raises(serving.ServerError, match="ended with code 3(.|\n)*weights are on the moon"):
        with serving.local_server("nowhere", broken):
            pytest.fail("not reached")


def test_a_missing_script_is_told(tmp_path, mine):
    with pytest.raises(serving.ServerError, match="nothing.py"):
        with serving.local_server("nowhere", tmp_path / "nothing.py"):
            pytest.fail("not reached")


def test_a_checkpoint_that_is_none_is_told(tmp_path, mine):
    with pytest.raises(serving.ServerError, match="lacks config.json"):
        with serving.local_server(tmp_path):
            pytest.fail("not reached")


def test_a_slow_init_is_given_up(script, mine):
    slow = script("""
        import time
        def init():
            print("still loading", flush=True)
            time.sleep(600)
        def run(body):
            pass
    """)
    with pytest.raises(serving.ServerError, match="not ready after 2 seconds"):
        with serving.local_server("nowhere", slow, timeout=2):
            pytest.fail("not reached")


def test_a_worker_that_ignores_sigterm_is_killed(script, mine):
    stubborn = script("""
        import os, subprocess, sys
        def init():  # a child that will not listen
            code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); " \\
                   "print('deaf', flush=True); time.sleep(600)"
            child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            child.stdout.readline()
        def run(body):
            pass
    """)
    with serving.local_server("nowhere", stubborn):
        processes = mine()
        assert len(processes) == 3
    assert gone(processes)


def test_the_log_is_kept_where_asked(script, tmp_path, capfd):
    with serving.local_server("nowhere", script(), log=tmp_path / "log.txt"):
        pass
    assert "hello from init" in (tmp_path / "log.txt").read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_does_not_outlive_a_killed_parent(script):
    code = "import time; from helpers import serving\n" \
           f"with serving.local_server('nowhere', {str(script())!r}):\n" \
           "    print('up', flush=True); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    processes = started_by(psutil.Process(parent.pid))
    assert len(processes) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert gone(processes)


def test_in_a_notebook_also_when_interrupted(script, tmp_path):
    """A real Jupyter kernel: a cell is interrupted in the block; the next one serves again."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    try:
        client.execute_interactive("from helpers import serving; import requests, time, psutil",
                                   timeout=120)
        block = f"with serving.local_server('nowhere', {str(script())!r}) as url:\n"
        flag = tmp_path / "up"
        client.execute(block + f"    open({str(flag)!r}, 'w').close(); time.sleep(600)")
        deadline = time.monotonic() + 120
        while not flag.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        manager.interrupt_kernel()
        said = client.get_shell_msg(timeout=60)["content"]
        while said.get("ename") != "KeyboardInterrupt":  # the replies of the cells, in order
            said = client.get_shell_msg(timeout=60)["content"]
        printed = []
        reply = client.execute_interactive(
            "left = len(psutil.Process().children())\n" + block +
            "    print(requests.get(url).text, left)", timeout=120,
            output_hook=lambda m: printed.append(m["content"].get("text", "")))
        assert reply["content"]["status"] == "ok"
        assert "".join(printed).strip() == "Healthy 0"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
