"""Token classification: a tag for every word; `token-classification.ipynb` builds it by hand.

A word's tag is read at its first piece, in training and in use. Tags follow IOB2: B-PER begins
a person, I-PER goes on, O is outside.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import softmax
from transformers import AutoModelForTokenClassification

from helpers import tasks

METRIC = "span_f1"
# Marks that change the character before them; `\w` leaves them out.
_MARKS = "\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u064b-\u065f\u0900-\u0903\u093a-\u094f" \
         "\u0e31-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_W = rf"[\w{_MARKS}]"
_CLITIC = rf"['\u2019](?:s|re|ve|ll|d|m|t)(?!{_W})"
# Words as the CoNLL-2003 data have them: U.N., 1996-08-22, O'Brien, Hendrix 's
WORD = re.compile(
    rf"(?:[^\W\d_]\.){{2,}}|{_CLITIC}"
    rf"|{_W}+(?:(?!{_CLITIC})[-.,/:&'\u2019]{_W}+)*|\S", re.IGNORECASE)


def labels(dataset) -> list[str]:
    """The tag names of a data set with a column `ner_tags` of class labels."""
    return list(dataset.features["ner_tags"].feature.names)


def words(text: str) -> list[tuple[int, int]]:
    """Cut a raw text into words: (start, end) of each, in characters."""
    return [match.span() for match in WORD.finditer(text)]


def encode(dataset, tokenizer, max_length: int | None = None) -> list[dict]:
    """Turn rows of `tokens` and `ner_tags` into {input_ids, labels}.

    A word's label stands at its first piece, -100 at its other pieces and the special tokens.
    Longer rows are cut at `max_length` tokens, the model's own limit by default.
    """
    encoded = tokenizer(list(dataset["tokens"]), is_split_into_words=True, truncation=True,
                        max_length=max_length or tasks.limit(tokenizer),
                        return_attention_mask=False)
    rows = []
    for i, (ids, tags) in enumerate(zip(encoded["input_ids"], dataset["ner_tags"])):
        aligned = np.full(len(ids), tasks.IGNORED, dtype=np.int32)
        for position, word in first_pieces(encoded.word_ids(i)):
            aligned[position] = tags[word]
        rows.append({"input_ids": np.array(ids, dtype=np.int32), "labels": aligned})
    return rows


def first_pieces(word_ids: Sequence[int | None]) -> list[tuple[int, int]]:
    """(position, word) of each word's first piece, from a tokenizer's `word_ids`."""
    return [(i, word) for i, word in enumerate(word_ids)
            if word is not None and (i == 0 or word != word_ids[i - 1])]


def build(folder: str | Path, labels: Sequence[str]):
    """A checkpoint's encoder with a new head for these tags; draws from torch's generator."""
    return tasks.build_with_head(AutoModelForTokenClassification, folder, labels)


def load(folder: str | Path, device: str = "auto", precision: str = "fp32") -> "Predictor":
    """Load a trained tagger and its tokenizer from a local folder."""
    return Predictor(*tasks.load_parts(AutoModelForTokenClassification, folder, device, precision))


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a row of IOB2 tags: (type, first word, word after the last).

    As conlleval reads them: an I- that continues no entity of its type begins one.
    """
    found, start, kind = [], 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind is not None and (prefix != "I" or name != kind):
            found.append((kind, start, i))
            kind = None
        if prefix in ("B", "I") and kind is None:
            start, kind = i, name
    return found


def decode(tags: Sequence[str], scores: Sequence[float], offsets: Sequence[tuple[int, int]],
           spell: Callable[[int, int], str]) -> list[dict]:
    """Turn the tags of a text's words into {entity_group, score, word, start, end}.

    `offsets` are the words' characters in the raw text; `spell(first, last)` writes the words
    from first to before last as the model reads them. As in the transformers pipeline with
    aggregation_strategy="first": the score is the mean over the words, `word` is in the model's
    own spelling, text[start:end] in yours.
    """
    return [{"entity_group": kind, "score": float(np.mean(scores[first:last])),
             "word": spell(first, last),
             "start": offsets[first][0], "end": offsets[last - 1][1]}
            for kind, first, last in spans(tags)]


def gold(dataset) -> list[list[str]]:
    """The true tags of a data set, by name."""
    names = labels(dataset)
    return [[names[i] for i in row] for row in dataset["ner_tags"]]


def count(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]],
          kind: str | None = None) -> np.ndarray:
    """Entities (correct, predicted, gold) of every row, [rows, 3]; of one type where given.

    Raises ValueError naming a row whose two sides differ in length.
    """
    rows = []
    for row, (ours, true) in enumerate(zip(predicted, gold, strict=True)):
        if len(ours) != len(true):
            raise ValueError(f"row {row}: {len(ours)} predicted and {len(true)} gold tags; "
                             "give one tag a word on both sides")
        ours, true = ({span for span in spans(side) if kind in (None, span[0])}
                      for side in (ours, true))
        rows.append((len(ours & true), len(ours), len(true)))
    return np.array(rows, dtype=int).reshape(-1, 3)


def score(predicted: Iterable[Sequence[str]], gold: Iterable[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 over entities, micro-averaged, in [0, 1] (conlleval).

    An entity counts where its type and both its ends are right. Where there is none to find
    or none is found, the value is 0.
    """
    correct, ours, true = count(predicted, gold).sum(0)
    return {"precision": float(correct / ours) if ours else 0.0,
            "recall": float(correct / true) if true else 0.0,
            "span_f1": float(2 * correct / (ours + true)) if ours + true else 0.0}


class Predictor(tasks.BasePredictor):
    """Finds the entities of texts: `tagger(["Ada lives in Turin."])`."""

    def __call__(self, texts: Sequence[str]) -> list[list[dict]]:
        """Return for each text its entities, {entity_group, score, word, start, end}, in order.

        start and end count characters of the raw text; texts of any length are read in parts.
        Raises ValueError naming the first row that is no string.
        """
        texts = tasks.checked(texts)
        offsets = [words(text) for text in texts]
        tokens = [[text[start:end] for start, end in row] for text, row in zip(texts, offsets)]
        return [decode(tags, scores, row, partial(self._spell, pieces))
                for row, (tags, scores, pieces) in zip(offsets, self.tag(tokens))]

    def _spell(self, pieces: Sequence[list[int]], first: int, last: int) -> str:
        write, read = self.tokenizer.convert_tokens_to_string, self.tokenizer.convert_ids_to_tokens
        return write([write(read(ids)) for ids in pieces[first:last]])

    def tag(self, tokens: Sequence[Sequence[str]], progress: bool = False) -> list[tuple]:
        """Return for each row of words (tags, their probabilities, the words' token ids).

        A word of which the tokenizer keeps nothing is tagged O with probability 1.
        """
        names = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]
        answers = [(["O"] * len(row), [1.0] * len(row), [[] for _ in row]) for row in tokens]
        ids, places = self._parts(tokens, answers)
        for rows, output in self.run(ids, progress):
            for i, part in enumerate(rows):
                row, firsts = places[part]
                positions = [position for position, _ in firsts]
                chances = softmax(output["logits"][i, positions], axis=-1)
                tags, scores, _ = answers[row]
                for (_, word), chance in zip(firsts, chances):
                    best = int(chance.argmax())
                    tags[word], scores[word] = names[best], float(chance[best])
        return answers

    def _parts(self, tokens, answers) -> tuple[list, list]:
        """Cut every row between words into parts that the model can read; note the words' ids."""
        room, tokenizer = self.max_length - 2, self.tokenizer
        full = [(row, list(words)) for row, words in enumerate(tokens) if len(words)]
        if not full:
            return [], []
        encoded = tokenizer([words for _, words in full], is_split_into_words=True,
                            add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids, places = [], []
        for i, (row, _) in enumerate(full):
            all_ids, firsts = encoded["input_ids"][i], first_pieces(encoded.word_ids(i))
            part, starts = [tokenizer.cls_token_id], []
            for n, (position, word) in enumerate(firsts):
                after = firsts[n + 1][0] if n + 1 < len(firsts) else len(all_ids)
                pieces = all_ids[position:after]
                answers[row][2][word] = pieces
                if starts and len(part) - 1 + len(pieces) > room:
                    ids.append([*part, tokenizer.sep_token_id])
                    places.append((row, starts))
                    part, starts = [tokenizer.cls_token_id], []
                starts.append((len(part), word))
                part.extend(pieces[:room])
            if starts:
                ids.append([*part, tokenizer.sep_token_id])
                places.append((row, starts))
        return ids, places

    def predictions(self, dataset, progress: bool = False) -> list[list[str]]:
        """The tags of every row of a data set's `tokens`."""
        return [tags for tags, _, _ in self.tag(list(dataset["tokens"]), progress)]
