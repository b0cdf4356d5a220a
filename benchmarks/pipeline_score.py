"""What one would write without this project: a scoring script that calls the pipeline.

It takes and answers the card's request, without validation; the benchmark `online` stands it
against cli/score_online.py in the same server.
"""

import json
import os

import torch
from transformers import pipeline

service = {}


def init():
    """Load the pipeline."""
    service["pipe"] = pipeline("fill-mask", model=os.environ["CHECKPOINT"], dtype=torch.float32,
                               device="cpu")


def run(body):
    """Answer one request in the card's shape."""
    request = json.loads(body)
    texts = request["inputs"]["input_string"]
    answer = service["pipe"](texts, top_k=request["parameters"]["top_k"])
    return [answer] if len(texts) == 1 else answer  # the pipeline drops the outer list of one
