"""The model card's own answers, asked of `distilbert-base-uncased` itself: make verify-hub.

    python -m tests.verify_hub

Takes the model from the cache or the Hub (268 MB); says that it was skipped, and why, where
neither can be had.
"""

import sys

TEXTS = ["Paris is the [MASK] of France.", "Today is a [MASK] day!"]
GOLDEN = [  # of the card's sample request with top_k 2: word, id, score
    [("capital", 3007, 0.9815465807914734), ("birthplace", 14508, 0.0033424433786422014)],
    [("glorious", 14013, 0.17984138429164886), ("beautiful", 3376, 0.07140577584505081)],
]
TOLERANCE = 1e-3


def differences(answers: list) -> list[str]:
    """Where answers differ from the card's: ids and words exactly, scores by TOLERANCE."""
    wrong = []
    for text, answer, golden in zip(TEXTS, answers, GOLDEN, strict=True):
        for rank, (ours, (word, token, score)) in enumerate(zip(answer, golden, strict=True), 1):
            same = (ours["token_str"], ours["token"]) == (word, token)
            if not same or abs(ours["score"] - score) > TOLERANCE:
                wrong.append(f"{text} rank {rank}: the card has {word} ({token}) {score:.6f}, "
                             f"here {ours['token_str']} ({ours['token']}) {ours['score']:.6f}")
    return wrong


def main() -> int:
    from helpers import checkpoints, fill_mask

    try:
        folder = checkpoints.find("distilbert-base-uncased")
    except FileNotFoundError as error:
        print(f"skipped: {error}")
        return 0
    wrong = differences(fill_mask.load(folder, device="cpu")(TEXTS, top_k=2))
    print("\n".join(wrong) or "the card's four golden answers agree: ids exact, scores "
          f"within {TOLERANCE}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
