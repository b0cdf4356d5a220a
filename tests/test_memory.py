"""Free memory kept for the next step, or given back: watched in processes of their own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings, Linux only")

STEP = """
import resource
import torch
from helpers import memory

def resident():  # MB
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 2**20

def step():  # four activations of 64 MB
    kept = [torch.ones(16 * 2**20) for _ in range(4)]
    return len(kept)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""


def run(code: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", STEP + code], capture_output=True, text=True,
                          check=True)
    return [float(word) for word in done.stdout.split()]


def test_kept_memory_is_used_again_and_given_back_at_the_end():
    before, plain, again, after = run("""
step()
start, first = resident(), faults()
for _ in range(9):
    step()
plain = faults() - first
with memory.kept():
    step()
    first = faults()
    for _ in range(9):
        step()
    again = faults() - first
print(start, plain, again, resident())
""")
    pages = 9 * 4 * 16384  # of 4 kB, if each step has them cleared anew
    assert plain > 0.9 * pages and again < 0.5 * pages
    assert after < before + 64


def test_an_error_within_gives_memory_back_too():
    before, after = run("""
step()
start = resident()
try:
    with memory.kept():
        step()
        raise RuntimeError
except RuntimeError:
    print(start, resident())
""")
    assert after < before + 64


def test_blocks_are_given_back_as_soon_as_they_are_free():
    before, after = run("""
memory.give_back_blocks()
start = resident()
blocks = [torch.ones(2**20 * k) for k in (1, 2, 3, 4, 5, 6)]
ends = [torch.ones(8) for _ in range(100)]
del blocks
print(start, resident())
""")
    assert after < before + 8


def test_of_the_products_of_many_shapes_few_are_kept():
    plain, bounded, training = (run(f"""
import os
from helpers import onednn
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
os.environ.pop("LRU_CACHE_CAPACITY", None)
{setting}
layer = onednn.linear(torch.ones(384, 384), None)
layer(torch.ones(1000, 384))
start = resident()
for rows in range(1, 1000):
    layer(torch.ones(rows, 384))
print(resident() - start)
""")[0] for setting in ("", "memory.keep_products(64)", "memory.kept().__enter__()"))
    assert max(bounded, training) < plain / 4


def test_other_c_libraries_are_left_alone(monkeypatch):
    from helpers import memory

    class Other:
        def __init__(self, name):
            pass  # has neither mallopt nor malloc_trim

    monkeypatch.setattr(memory.ctypes, "CDLL", Other)
    memory.give_back_blocks()
    with memory.kept():
        pass
