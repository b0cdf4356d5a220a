"""Measure a masked-LM checkpoint: held-out articles, a unigram baseline, everyday cloze probes.

    python -m benchmarks.checkpoint --run DIR [--checkpoint embedded]

DIR is the output folder of `python -m helpers.pretraining`: its held-out sequences are what is
measured, its training sequences give the baseline, its log the learning curve. The probes with
hits and misses are printed as a table for the card.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, DistilBertForMaskedLM

from benchmarks import results
from helpers import checkpoints, evaluation, pretraining, report

PROBES = Path(__file__).with_name("probes.jsonl")
COMMAND = "python -m benchmarks.checkpoint --run DIR"


def held_out(model, tokenizer, run: Path, masked_tokens: int, seed: int) -> list[dict]:
    """Top-1 accuracy on masked tokens of held-out articles, two ways, beside a baseline.

    The intervals resample whole sequences: tokens of one sequence are not independent.
    Raises ValueError where there are fewer masked tokens than asked for.
    """
    train, held = np.load(run / "train.npy"), np.load(run / "held_out.npy")
    counts = np.bincount(train.ravel(), minlength=len(tokenizer))
    counts[tokenizer.all_special_ids] = 0
    rows = []
    for split, only_mask in (("80/10/10", False), ("[MASK] only", True)):
        began = time.monotonic()
        gold, predicted, sequence = pretraining.predict_masked(
            model, tokenizer, held, seed=seed, limit=masked_tokens, only_mask=only_mask,
            progress=True)
        if len(gold) < masked_tokens:
            raise ValueError(f"{run}: only {len(gold):,} masked tokens are held out, "
                             f"{masked_tokens:,} asked for; raise --held_out in the run")
        seconds = time.monotonic() - began
        for metric, hits in (("top-1 accuracy", gold == predicted),
                             ("top-1 accuracy of the most frequent word", gold == counts.argmax())):
            rows.append({"task": "fill-mask", "data": "held-out articles", "split": split,
                         "rows": len(gold), "metric": metric, "seconds": seconds, "seed": seed,
                         **evaluation.bootstrap(hits, sequence, seed=seed)._asdict()})
    return rows


@torch.inference_mode()
def probes(model, tokenizer) -> tuple[list[dict], list[dict]]:
    """The everyday cloze sentences: rows of accuracy@1 and @5, and the five words of each."""
    model.eval()
    began, table = time.monotonic(), []
    for line in PROBES.read_text(encoding="utf-8").splitlines():
        probe = json.loads(line)
        batch = tokenizer(probe["text"], return_tensors="pt").to(model.device)
        place = batch["input_ids"][0] == tokenizer.mask_token_id
        best = model(**batch).logits[0, place].topk(5).indices[0]
        words = tokenizer.convert_ids_to_tokens(best.tolist())
        rank = next((i for i, word in enumerate(words, 1) if word in probe["answers"]), None)
        table.append({**probe, "words": words, "rank": rank})
    rows = []
    for k in (1, 5):
        hits = [bool(probe["rank"]) and probe["rank"] <= k for probe in table]
        rows.append({"task": "fill-mask", "data": PROBES.name, "split": "all", "rows": len(hits),
                     "metric": f"accuracy@{k}", "seconds": time.monotonic() - began, "seed": 0,
                     **evaluation.bootstrap(hits)._asdict()})
    return rows, table


def markdown(table: list[dict]) -> str:
    """The probes as a table for the card, hits and misses alike."""
    lines = ["| sentence | accepted | the model's five, best first | rank |", "|---|---|---|---|"]
    lines += [f"| {r['text']} | {', '.join(r['answers'])} | {', '.join(r['words'])} | "
              f"{r['rank'] or 'miss'} |" for r in table]
    return "\n".join(lines)


def learning_curve(log: Path, picture: Path) -> None:
    """Draw loss and held-out accuracy against the tokens seen."""
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    tokens = [row["tokens"] / 1e6 for row in rows]
    report.style()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    axes[0].plot(tokens, [row["loss"] for row in rows], "o-", markersize=3)
    axes[0].set(title="masked-LM loss in training", ylabel="nats", xlabel="million tokens seen")
    axes[1].plot(tokens, [100 * row["accuracy"] for row in rows], "s-", markersize=3, color="C1")
    axes[1].set(title="top-1 on held-out articles", ylabel="percent", xlabel="million tokens seen")
    axes[1].set_ylim(bottom=0)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="output folder of the recipe")
    parser.add_argument("--checkpoint", default="embedded", help="embedded, or a folder")
    parser.add_argument("--masked_tokens", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.add_argument("--results", type=Path, default=results.FILE)
    parser.add_argument("--picture", type=Path, help="none for the checkpoint's learning-curve.png")
    options = parser.parse_args(arguments)
    folder = checkpoints.find(options.checkpoint)
    device = checkpoints.pick_device(options.device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = DistilBertForMaskedLM.from_pretrained(folder, dtype=torch.float32).to(device)

    learning_curve(options.run / "log.jsonl", options.picture or folder / "learning-curve.png")
    asked, table = probes(model, tokenizer)
    print(markdown(table))
    rows = asked + held_out(model, tokenizer, options.run, options.masked_tokens, options.seed)
    results.add((results.row(**r, command=COMMAND, checkpoint=folder, device=device)
                 for r in rows), options.results)
    for r in rows:
        print(f"{r['data']}, {r['split']}: {r['metric']} {r['value']:.4f} "
              f"({r['low']:.4f} to {r['high']:.4f}) on {r['rows']:,}")


if __name__ == "__main__":
    main()
