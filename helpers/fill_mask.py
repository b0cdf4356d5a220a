"""Fill-mask: the most likely words at each mask, computed only there.

The notebook `fill-mask-online-endpoint.ipynb` builds one answer by hand. Four things make it
fast: the vocabulary projection and the last layer run at the masks only, texts of like length
share a batch, a batch is filled by tokens, not by rows, and on a processor the products are
oneDNN's, with weights in its layout.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoTokenizer

from helpers import onednn, report

BATCH_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}
MASKS_AT_ONCE = 256  # rows of the vocabulary projection held in memory: 256 x 30,522 x 4 bytes
WINDOW = 4096  # texts of a stream that are held and sorted together


class BadText(ValueError):
    """One text that cannot be filled: `row`, `code` (not_text, no_mask, too_long), `message`."""

    def __init__(self, row: int, code: str, message: str):
        super().__init__(f"row {row}: {message}")
        self.row, self.code, self.message = row, code, message


def load(folder: str | Path, device: str = "auto", precision: str = "fp32") -> "FillMask":
    """Load a masked language model and its tokenizer from a local folder.

    fp32 is exact; bf16 computes the encoder's products in bfloat16, the logits in float32. Raises
    ValueError for any other precision, for a model that is neither DistilBERT nor BERT, and
    for one without a trained masked-LM head.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision: fill_mask has no {precision}; use fp32 or bf16")
    model, loading = onednn.load(AutoModelForMaskedLM, folder, device, precision)
    if missing := sorted(loading["missing_keys"]):  # transformers fills them at random
        raise ValueError(f"checkpoint: {folder} has no weights for {', '.join(missing[:3])}"
                         f"{', ...' if missing[3:] else ''}; give a masked language model saved "
                         "with its head")
    return FillMask(model, AutoTokenizer.from_pretrained(folder))


class FillMask:
    """Fills the masks of texts with a DistilBertForMaskedLM or BertForMaskedLM.

    `FillMask(model, tokenizer)(texts)` answers like transformers' fill-mask pipeline on the
    same model. Raises ValueError for a model of another kind: its last steps are not known.
    """

    def __init__(self, model, tokenizer):
        if model.config.model_type not in ("distilbert", "bert"):
            raise ValueError(f"checkpoint: fill_mask knows distilbert and bert, not "
                             f"{model.config.model_type}; give one of these")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.device = model.device
        self.batch_tokens = BATCH_TOKENS.get(self.device.type, 512)
        self.mask_id, self.pad_id = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        self.vocab_size = model.config.vocab_size
        # The last product decides between near words: in float32 whatever the encoder runs in.
        last = model.get_output_embeddings()
        weight = last.weight.detach().float()
        self._project = onednn.linear(
            weight, None if last.bias is None else last.bias.detach().float())
        self._words: dict[int, str] = {}

    # ------------------------------------------------------------ answers

    def __call__(self, texts: Sequence[str], top_k: int = 5,
                 targets: str | Sequence[str] | None = None, progress: bool = False) -> list:
        """Return the candidates of every text, in the order asked.

        For each text a list of `top_k` dicts {score, token, token_str, sequence}, best first;
        for a text with several masks a list of such lists. `targets` limits the candidates to
        these words. A single string is one text. Raises BadText (a ValueError) for the first
        text that cannot be filled, before any computing; ValueError for top_k and targets.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        target_ids = self._check(top_k, targets)
        ids = self.encode(texts)
        if bad := next((row for row in ids if isinstance(row, BadText)), None):
            raise bad
        return self._fill(ids, top_k, target_ids, progress)

    def stream(self, texts: Iterable[str], top_k: int = 5,
               targets: str | Sequence[str] | None = None, on_error: str = "raise",
               window: int = WINDOW) -> Iterator:
        """Yield the candidates of an endless row of texts, in order, in bounded memory.

        A single string is one text. With on_error="return" a text that cannot be filled
        yields its BadText instead.
        """
        target_ids = self._check(top_k, targets)
        texts, first = iter([texts] if isinstance(texts, str) else texts), 0
        while some := list(islice(texts, window)):
            ids = self.encode(some, first)
            good = [row for row in ids if not isinstance(row, BadText)]
            if len(good) < len(ids) and on_error == "raise":
                raise next(row for row in ids if isinstance(row, BadText))
            answers = iter(self._fill(good, top_k, target_ids, progress=False))
            yield from (row if isinstance(row, BadText) else next(answers) for row in ids)
            first += len(some)

    def encode(self, texts: Sequence[str], first_row: int = 0) -> list:
        """Turn each text into its list of token ids, or into the BadText that says why not."""
        rows = [self._problem(text, row) for row, text in enumerate(texts, first_row)]
        good = [text for text, problem in zip(texts, rows) if problem is None]
        encoded = iter(self.tokenizer(good, return_attention_mask=False, verbose=False,
                                      return_token_type_ids=False)["input_ids"] if good else [])
        for i, problem in enumerate(rows):
            if problem is None:
                ids = next(encoded)
                rows[i] = ids if self.mask_id in ids and len(ids) <= self.max_length else \
                    self._problem(texts[i], first_row + i, ids)
        return rows

    def target_ids(self, targets: str | Sequence[str]) -> list[int]:
        """Return the sorted token ids of candidate words.

        A word must be one token of the vocabulary, as it stands or as the tokenizer reads it
        (lower-cased by an uncased one). Raises ValueError naming the word that is not.
        """
        targets = [targets] if isinstance(targets, str) else list(targets)
        if not targets:
            raise ValueError("targets: none given; name at least one word, or leave targets out")
        found = set()
        for target in targets:
            token = self._vocabulary.get(target) if _valid(target) else None
            if token is None and _valid(target):
                pieces = self.tokenizer(target, add_special_tokens=False,
                                        verbose=False)["input_ids"]
                known = len(pieces) == 1 and pieces[0] != self.tokenizer.unk_token_id
                token = pieces[0] if known else None
            if token is None:
                raise ValueError(f"targets: {_short(target)} is not in the vocabulary; "
                                 "give words that are one token")
            found.add(token)
        return sorted(found)

    # ------------------------------------------------------------ for evaluation

    def masked_log_probs(self, ids: Sequence[Sequence[int]], gold: Sequence[Sequence[int]],
                         progress: bool = False) -> dict[str, np.ndarray]:
        """Compare the model's distribution at every mask with the token that was there.

        ids: token ids of each row, masks included; gold: per row the true id of each mask in
        order. Returns flat arrays, one entry a mask, in the order of rows and masks: `row`,
        `log_prob` and `rank` (1 is best) of the gold token, `token` and `token_log_prob` of the
        model's first choice. Raises ValueError where a row has not as many masks as gold ids.
        """
        counts = np.array([list(row).count(self.mask_id) for row in ids], dtype=int)
        for row, (count, true) in enumerate(zip(counts, gold, strict=True)):
            if count != len(true):
                raise ValueError(f"row {row}: {count} masks and {len(true)} gold tokens; "
                                 "give one gold token per mask")
        starts = np.cumsum(counts) - counts
        result = {"row": np.repeat(np.arange(len(ids)), counts)}
        result |= {name: np.zeros(counts.sum()) for name in ("log_prob", "token_log_prob")}
        result |= {name: np.zeros(counts.sum(), dtype=int) for name in ("rank", "token")}
        for rows, logits in self.masked_logits(ids, progress):
            where = np.concatenate([starts[row] + np.arange(counts[row]) for row in rows])
            true = torch.tensor([t for row in rows for t in gold[row]], device=logits.device)
            total = logits.logsumexp(-1)
            best, token = logits.max(-1)
            own = logits.gather(1, true[:, None])
            for name, value in (("log_prob", own[:, 0] - total), ("token_log_prob", best - total),
                                ("rank", (logits > own).sum(-1) + 1), ("token", token)):
                result[name][where] = value.cpu().numpy()
        return result

    @torch.inference_mode()
    def masked_logits(self, ids: Sequence[Sequence[int]], progress: bool = False
                      ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield (rows, logits) batch by batch, longest rows first.

        logits: float32, [masks of these rows, vocabulary], rows in turn, masks from the left.
        Every row needs a mask and at most `max_length` tokens.
        """
        with report.bar(show=progress, total=len(ids), unit="text") as bar:
            for rows in self._batches(ids):
                hidden = self._hidden_at_masks([ids[row] for row in rows])
                yield rows, self._project(hidden.float())
                bar.update(len(rows))

    # ------------------------------------------------------------ inside

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def _check(self, top_k: int, targets) -> list[int] | None:
        if isinstance(top_k, bool) or not isinstance(top_k, int) or \
                not 1 <= top_k <= self.vocab_size:
            raise ValueError(f"top_k: {top_k!r} is not an integer from 1 to {self.vocab_size}")
        return None if targets is None else self.target_ids(targets)

    def _problem(self, text, row: int, ids: list[int] | None = None) -> BadText | None:
        mask = self.tokenizer.mask_token
        if not isinstance(text, str):
            return BadText(row, "not_text", f"{_short(text)} is not a string; give a text")
        if not _valid(text):
            return BadText(row, "not_text", "half of a surrogate pair in the text; "
                           "write the character itself or its whole pair")
        if ids is None:
            return None
        if self.mask_id not in ids:
            return BadText(row, "no_mask", f"no {mask} in {_short(text)}; "
                           f"write {mask} where the word is missing")
        return BadText(row, "too_long", f"{len(ids)} tokens in {_short(text)}, more than the "
                       f"model's {self.max_length}; shorten the text around {mask}")

    def _fill(self, ids: list[list[int]], top_k: int, target_ids: list[int] | None,
              progress: bool) -> list:
        answers: list = [None] * len(ids)
        only = None if target_ids is None else torch.tensor(target_ids, device=self.device)
        k = top_k if only is None else min(top_k, len(only))
        for rows, logits in self.masked_logits(ids, progress):
            total = logits.logsumexp(-1, keepdim=True)
            values, tokens = (logits if only is None else logits[:, only]).topk(k)
            tokens = tokens if only is None else only[tokens]
            scores = (values - total).exp().tolist()
            found = iter(zip(scores, tokens.tolist()))
            for row in rows:
                masks = [i for i, token in enumerate(ids[row]) if token == self.mask_id]
                answers[row] = [next(found) for _ in masks]
        return self._spell(ids, answers)

    def _spell(self, ids: list[list[int]], answers: list) -> list:
        """Turn (scores, tokens) of each mask into dicts, decoding all sequences in one call."""
        self._learn({token for answer in answers for _, tokens in answer for token in tokens})
        plain, marked = [], []  # several masks keep their special tokens: the others must show
        for row, answer in zip(ids, answers):
            masks = [i for i, token in enumerate(row) if token == self.mask_id]
            for position, (_, tokens) in zip(masks, answer):
                for token in tokens:
                    filled = [*row[:position], token, *row[position + 1:]]
                    (plain if len(masks) == 1 else marked).append(
                        [i for i in filled if i != self.pad_id])
        plain = iter(self.tokenizer.batch_decode(plain, skip_special_tokens=True))
        marked = iter(self.tokenizer.batch_decode(marked))
        result = []
        for answer in answers:
            sequences = plain if len(answer) == 1 else marked
            filled = [[{"score": score, "token": token, "token_str": self._words[token],
                        "sequence": next(sequences)} for score, token in zip(*mask)]
                      for mask in answer]
            result.append(filled[0] if len(filled) == 1 else filled)
        return result

    def _learn(self, tokens: set[int]) -> None:
        new = sorted(tokens - self._words.keys())
        self._words.update(zip(new, self.tokenizer.batch_decode([[token] for token in new])))

    def _batches(self, ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Rows of like length together, until a batch holds batch_tokens tokens."""
        batch, masks = [], 0
        for row in sorted(range(len(ids)), key=lambda row: -len(ids[row])):
            count = ids[row].count(self.mask_id)
            full = batch and (len(ids[batch[0]]) * (len(batch) + 1) > self.batch_tokens
                              or masks + count > MASKS_AT_ONCE)
            if full:
                yield batch
                batch, masks = [], 0
            batch.append(row)
            masks += count
        if batch:
            yield batch

    def _hidden_at_masks(self, rows: list[list[int]]) -> torch.Tensor:
        """Encode one batch; return what the vocabulary projection takes, [masks, width]."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self.pad_id] * (longest - len(row))] for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        real = torch.arange(longest) < lengths[:, None]
        row, column = torch.nonzero((ids == self.mask_id) & real, as_tuple=True)
        ids, row, column = (t.to(self.device) for t in (ids, row, column))
        real = None if bool(real.all()) else real.to(self.device)
        model = self.model
        if model.config.model_type == "distilbert":
            hidden = _distilbert_at(model.distilbert, ids, real, row, column)
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
        hidden = model.base_model(ids, attention_mask=real)[0][row, column]
        return model.cls.predictions.transform(hidden)


def _distilbert_at(encoder, ids, real, row, column) -> torch.Tensor:
    """Hidden states [masks, width] of a DistilBertModel at (row, column) only.

    The last layer needs keys and values everywhere, but queries, output and feed-forward
    only at the masks: a seventh of the encoder's work is saved.
    """
    hidden = encoder.embeddings(ids)
    attend = None
    if real is not None:  # added to the attention scores: what eager attention does with a mask
        attend = torch.zeros(real.shape, dtype=hidden.dtype, device=hidden.device).masked_fill(
            ~real, torch.finfo(hidden.dtype).min)[:, None, None, :]
    *layers, last = encoder.transformer.layer
    for layer in layers:
        hidden = layer(hidden, attend)
    # Masks of one text side by side, [texts, most masks in a text]; gaps repeat position 0.
    nth = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
    where = torch.zeros(len(ids), int(nth.max()) + 1, dtype=torch.long, device=ids.device)
    where[row, nth] = column
    picked = hidden.gather(1, where[..., None].expand(-1, -1, hidden.shape[-1]))
    attention = last.attention

    def heads(states):
        return states.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)

    context = F.scaled_dot_product_attention(
        heads(attention.q_lin(picked)), heads(attention.k_lin(hidden)),
        heads(attention.v_lin(hidden)), attn_mask=attend)
    context = attention.out_lin(context.transpose(1, 2).flatten(2))[row, nth]
    normed = last.sa_layer_norm(context + picked[row, nth])
    return last.output_layer_norm(last.ffn(normed[:, None])[:, 0] + normed)


def _valid(text) -> bool:
    """Whether this is a string that UTF-8 can carry (half a surrogate pair is not)."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


def _short(value, limit: int = 60) -> str:
    """A value for a message: quoted where it is a text, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= limit else text[:limit - 4] + " ..."
    text = f'"{text}"' if isinstance(value, str) else text
    return text.encode("utf-8", "backslashreplace").decode()
