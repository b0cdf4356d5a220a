"""Fixtures that more than one test module needs."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests of the Hub set their own loopback server
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

# A run that a shell put into the background ignores interrupts, and so would its children.
signal.signal(signal.SIGINT, signal.default_int_handler)

PROJECT = Path(__file__).resolve().parents[1]


def shared_folder(*parts: str) -> Path:
    """A folder or file of the maintainers' test material; the test is skipped without it."""
    path = PROJECT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs the maintainers' test material: {'/'.join(parts)} (not in a clone)")
    return path


@pytest.fixture(scope="session")
def shared():
    return shared_folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A DistilBERT of two layers and width 32 with random weights and the real vocabulary."""
    import torch
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

    from helpers import checkpoints

    folder = tmp_path_factory.mktemp("tiny-checkpoint")
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.EMBEDDED)
    torch.manual_seed(0)
    config = DistilBertConfig(dim=32, hidden_dim=64, n_heads=2, n_layers=2,
                              vocab_size=len(tokenizer))
    model = DistilBertForMaskedLM(config)
    with torch.no_grad():  # spread the scores, so that no two candidates tie
        model.vocab_projector.bias.normal_(std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
