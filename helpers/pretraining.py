"""Masked-LM pretraining and knowledge distillation: folding, masking, packing, losses, loop.

From a shell, on any folder of parquet, csv or jsonl files with the columns title, text:

    python -m helpers.pretraining --init DIR --corpus DIR --output_dir DIR

A run that was stopped goes on from its last saved state when the same command is given again.
The notebook `knowledge-distillation.ipynb` builds the three losses by hand. Sources:
Devlin et al. 2019 (masking), Sanh et al. 2019 (DistilBERT's losses and student).
"""

import argparse
import copy
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM
from transformers import BertModel, DistilBertConfig, DistilBertForMaskedLM, PreTrainedModel

from helpers import checkpoints, memory, parameters, report

IGNORED = -100  # the label of a position that is not predicted, as everywhere in transformers
PAPER_WEIGHTS = {"distillation": 5.0, "masked_lm": 2.0, "cosine": 1.0}  # Sanh et al.'s code


# ---------------------------------------------------------------- where a model starts from

def fold_bert(folder: str | Path) -> DistilBertForMaskedLM:
    """Turn a saved BERT into a `DistilBertForMaskedLM` with the same hidden states.

    DistilBERT has no token-type embeddings: row 0 is added to every position embedding,
    which gives the same sum for single texts. BERT's masked-LM head comes along where the
    checkpoint has one, else the head is new; its projector is tied to the word embeddings.
    """
    c = AutoConfig.from_pretrained(folder)
    if _has_head(c):
        bert = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    else:
        bert = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32)
    config = DistilBertConfig(
        vocab_size=c.vocab_size, max_position_embeddings=c.max_position_embeddings,
        dim=c.hidden_size, hidden_dim=c.intermediate_size, n_layers=c.num_hidden_layers,
        n_heads=c.num_attention_heads, activation=c.hidden_act, pad_token_id=c.pad_token_id,
    )
    layer = {
        "attention.self.query": "attention.q_lin", "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin", "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm", "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2", "output.LayerNorm": "output_layer_norm",
    }
    head = {
        "transform.dense.weight": "vocab_transform.weight",
        "transform.dense.bias": "vocab_transform.bias",
        "transform.LayerNorm.weight": "vocab_layer_norm.weight",
        "transform.LayerNorm.bias": "vocab_layer_norm.bias",
        "bias": "vocab_projector.bias", "decoder.weight": "vocab_projector.weight",
    }
    model = DistilBertForMaskedLM(config)
    weights = model.state_dict()
    for key, value in bert.state_dict().items():
        key = key.removeprefix("bert.")
        if key.startswith("encoder.layer."):
            _, _, number, rest = key.split(".", 3)
            inner, kind = rest.rsplit(".", 1)
            weights[f"distilbert.transformer.layer.{number}.{layer[inner]}.{kind}"] = value
        elif key.startswith("cls.predictions."):
            if new := head.get(key.removeprefix("cls.predictions.")):
                weights[new] = value
        elif f"distilbert.{key}" in weights:
            weights[f"distilbert.{key}"] = value
    token_type = bert.base_model.embeddings.token_type_embeddings.weight[0]
    weights["distilbert.embeddings.position_embeddings.weight"] = (
        bert.base_model.embeddings.position_embeddings.weight + token_type)
    weights["vocab_projector.weight"] = weights["distilbert.embeddings.word_embeddings.weight"]
    model.load_state_dict(weights)
    model.tie_weights()
    return model


def _has_head(config) -> bool:
    return any(name.endswith(("ForMaskedLM", "ForPreTraining"))
               for name in config.architectures or [])


def start_from(folder: str | Path) -> DistilBertForMaskedLM:
    """Load a DistilBERT masked-LM folder in fp32, or fold a BERT folder into one.

    Raises ValueError where the checkpoint is neither.
    """
    kind = AutoConfig.from_pretrained(folder).model_type
    if kind == "bert":
        return fold_bert(folder)
    if kind != "distilbert":
        raise ValueError(f"{folder}: a {kind} checkpoint; give one of BERT or DistilBERT")
    return AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)


def student_of(teacher: DistilBertForMaskedLM, layers: int) -> DistilBertForMaskedLM:
    """Build a student with every n-th layer of the teacher, from the first, and all else copied.

    Raises ValueError where the teacher's layers do not divide by `layers`, or where it is no
    DistilBERT. Source: Sanh et al. 2019, section 3.
    """
    if teacher.config.model_type != "distilbert":
        raise ValueError(f"teacher: a {teacher.config.model_type} model; load it with "
                         "pretraining.start_from, which folds a BERT")
    has = teacher.config.n_layers
    if not 1 <= layers <= has or has % layers:
        fits = [n for n in range(1, has + 1) if has % n == 0]
        raise ValueError(f"layers: {layers} does not divide the teacher's {has}; use one of {fits}")
    config = copy.deepcopy(teacher.config)
    config.n_layers, config.dtype = layers, None
    student = DistilBertForMaskedLM(config)
    front, weights = "distilbert.transformer.layer.", {}
    for key, value in teacher.state_dict().items():
        if key.startswith(front):
            number, rest = key.removeprefix(front).split(".", 1)
            if int(number) % (has // layers):
                continue
            key = f"{front}{int(number) // (has // layers)}.{rest}"
        weights[key] = value.float()
    student.load_state_dict(weights)  # copies: the two share no memory
    student.tie_weights()
    return student


def check_same_vocabulary(teacher_tokenizer, student_tokenizer) -> None:
    """Raise ValueError where two tokenizers do not give the same ids to the same words.

    A student learns the teacher's distribution word by word, so both must mean the same words.
    """
    teacher, student = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    if teacher != student:
        word, number = min(teacher.items() ^ student.items(), key=lambda item: (item[1], item[0]))
        raise ValueError(
            f"vocabularies differ: the teacher has {len(teacher):,} words, the student "
            f"{len(student):,}; {word!r} is {teacher.get(word, 'missing')} in the teacher, "
            f"{student.get(word, 'missing')} in the student; use checkpoints of one vocabulary")


# ---------------------------------------------------------------- text to packed sequences

def read_corpus(folder: str | Path) -> list[tuple[str, str]]:
    """Read every parquet, csv or jsonl file of a folder: (title, text) pairs, in file order.

    Raises ValueError naming the file, and the row from 0, where a file cannot be read, a column
    is missing or a text is empty, and the folder where there is no text at all.
    """
    import pandas as pd

    plain = {"dtype": False, "convert_dates": False}  # a title may be 1984
    read = {".parquet": lambda path: pd.read_parquet(path),
            ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
            ".jsonl": lambda path: pd.read_json(path, lines=True, **plain)}
    rows = []
    for path in sorted(p for p in Path(folder).glob("**/*") if p.suffix in read):
        try:
            frame = read[path.suffix](path)
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{path}: not a readable {path.suffix[1:]} file ({reason})") from error
        if missing := {"title", "text"} - set(frame.columns):
            raise ValueError(f"{path}: no column {', '.join(sorted(missing))}; "
                             "a corpus file needs title, text")
        for number, (title, text) in enumerate(zip(frame.title, frame.text)):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}: row {number}: the text is empty; write one, or remove "
                                 "the row")
            rows.append((str(title), text))
    if not rows:
        raise ValueError(f"{folder}: no text found; give a folder of parquet, csv or jsonl files "
                         "with the columns title, text")
    return rows


def _same_title(title: str) -> str:
    return title.replace("_", " ").strip().lower()


def is_held_out(title: str, share: float) -> bool:
    """Whether an article is kept out of training: a fixed share of titles, by their hash."""
    key = _same_title(title).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64 < share


def pack(texts: Iterable[str], tokenizer, length: int = 128, limit: int | None = None,
         progress: bool = False) -> np.ndarray:
    """Tokenize texts into full sequences `[CLS] ... [SEP]` without padding.

    Texts follow one another with [SEP] between them; only the last, unfilled sequence is
    dropped. Returns ids of shape (sequences, length), at most `limit` tokens in all.
    Raises ValueError where a text is empty, or where the texts do not fill one sequence.
    """
    body = length - 2
    kind = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    wanted = math.inf if limit is None else limit // length
    if body < 1 or wanted < 1:
        raise ValueError(f"length {length}, limit {limit}: not room for one sequence")
    rows, count, rest, texts = [], 0, [], enumerate(texts)
    with report.bar(show=progress, desc="tokenize", unit=" tokens", unit_scale=True) as bar:
        while count < wanted and (batch := list(islice(texts, 256))):
            for number, text in batch:
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"text {number}: empty; remove it")
            encoded = tokenizer([text for _, text in batch], add_special_tokens=False,
                                verbose=False)["input_ids"]
            for ids in encoded:
                rest += [*ids, tokenizer.sep_token_id]
            full = len(rest) // body
            rows.append(np.array(rest[:full * body], dtype=kind).reshape(full, body))
            rest, count = rest[full * body:], count + full
            bar.update(full * length)
    if not count:
        raise ValueError(f"the texts have {len(rest)} tokens, one sequence needs {body}; "
                         "give more text, or a smaller length")
    packed = np.concatenate(rows)[:min(count, wanted)]
    ends = np.full((len(packed), 1), tokenizer.cls_token_id, dtype=kind)
    return np.hstack([ends, packed, np.full_like(ends, tokenizer.sep_token_id)])


def mask(input_ids: np.ndarray, tokenizer, rate: float, rng: np.random.Generator,
         only_mask: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw masks: of the drawn tokens 80 % become [MASK], 10 % a random token, 10 % stay.

    Shapes: (batch, length) in, (masked ids, labels) out, labels IGNORED where not drawn.
    Special tokens are never drawn; `rate` is the share of the others.
    `only_mask` turns every drawn token into [MASK].
    """
    ids = input_ids.astype(np.int64)
    special = np.isin(ids, tokenizer.all_special_ids)
    drawn = (rng.random(ids.shape) < rate) & ~special
    labels = np.where(drawn, ids, IGNORED)
    kind = rng.random(ids.shape)
    random_ids = rng.integers(0, len(tokenizer), ids.shape)
    masked = np.where(drawn & ((kind < 0.8) | only_mask), tokenizer.mask_token_id, ids)
    masked = np.where(drawn & (kind >= 0.8) & (kind < 0.9) & (not only_mask), random_ids, masked)
    return masked, labels


# ---------------------------------------------------------------- the losses

def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor,
                      temperature: float = 2.0) -> torch.Tensor:
    """Kullback-Leibler divergence of the softened distributions, times temperature squared.

    Shapes: (tokens, vocabulary) both; the mean over tokens, in nats. The teacher gets no
    gradient. Source: Hinton et al. 2015, Sanh et al. 2019.
    """
    soft = F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1)
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return F.kl_div(student, soft, reduction="batchmean", log_target=True) * temperature**2


def masked_lm_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy at the masked positions, in nats. Shapes: (tokens, vocabulary), (tokens,)."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)


def cosine_loss(student_hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of the two hidden states, the mean over tokens; 0 to 2.

    Shapes: (tokens, width) both. The teacher gets no gradient.
    """
    cosine = F.cosine_similarity(student_hidden.float(), teacher_hidden.detach().float(), dim=-1)
    return (1 - cosine).mean()


class _ProjectedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T + bias`, the mean over rows, a few rows at a time.

    The logits of 1,200 masked tokens over 30,522 words are 150 MB; in slices that stay in the
    processor's cache, with their slopes taken at once, the same loss takes half the time.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels):
        rows = max(len(labels), 1)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden)
        slopes = hidden.new_empty(len(labels), len(weight))
        loss = hidden.new_zeros((), dtype=exact)
        for h, y, g, slope in zip(*(x.split(256) for x in (hidden, labels, grad_hidden, slopes))):
            logs = torch.log_softmax(torch.addmm(bias, h, weight.t()), dim=-1, dtype=exact)
            loss -= logs.gather(1, y[:, None]).sum()
            shares = logs.exp_()
            shares.scatter_add_(1, y[:, None], -torch.ones_like(shares[:, :1]))
            slope.copy_(shares.div_(rows))
            torch.mm(slope, weight, out=g)
        grad_bias = slopes.sum(0, dtype=exact).to(bias.dtype)
        ctx.save_for_backward(grad_hidden, slopes.t() @ hidden, grad_bias)
        return loss / rows

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, bias = ctx.saved_tensors
        return hidden * grad, weight * grad, bias * grad, None


def head_states(model: DistilBertForMaskedLM, hidden: torch.Tensor) -> torch.Tensor:
    """The masked-LM head before its projection: (tokens, width) in and out."""
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))


# ---------------------------------------------------------------- the loop

def learning_rate(tokens: int, total: int, peak: float, warmup: float, decay: float) -> float:
    """Warm up linearly over the first share of tokens, hold, fall to zero over the last share."""
    done = tokens / total
    return peak * min(1.0, done / warmup if warmup else 1.0, (1 - done) / decay if decay else 1.0)


def _parameter_groups(model: DistilBertForMaskedLM, layer_decay: float) -> list[dict]:
    """One group per parameter: lower layers learn more slowly by `layer_decay` a layer."""
    layers = model.config.n_layers
    groups = []
    for name, parameter in model.named_parameters():
        depth = 0
        if name.startswith("distilbert.embeddings"):
            depth = layers + 1
        elif name.startswith("distilbert.transformer.layer."):
            depth = layers - int(name.split(".")[3])
        groups.append({"params": [parameter], "scale": layer_decay**depth,
                       "weight_decay": 0.01 if parameter.ndim > 1 else 0.0,
                       "head": not name.startswith("distilbert."),
                       "matrix": ".layer." in name and parameter.ndim == 2})
    return groups


def _optimizers(groups: list[dict], peak: float, kind: str) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, or Muon for the layers' matrices and AdamW for the others.

    Muon's steps are scaled to the size of AdamW's, so that both take one learning rate.
    Source: Jordan et al. 2024; Liu et al. 2025 (the scale).
    """
    muon = [g for g in groups if g["matrix"] and kind == "muon"]
    rest = [g for g in groups if not (g["matrix"] and kind == "muon")]
    optimizers = [torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), fused=True)]
    if muon:
        optimizers.append(torch.optim.Muon(muon, lr=peak, adjust_lr_fn="match_rms_adamw"))
    return optimizers


class Pretrainer:
    """The masked-LM loop over packed sequences: exact to resume, bf16 with fp32 masters.

    Batches and masks depend on (seed, step) alone and there is no dropout, so the state is the
    step, the weights and the optimizers. `hold` keeps the last hidden states of the visible
    tokens near those that the starting encoder gives for the clean text (cosine loss of that
    weight). `tokens` is the length of the schedule; the other shares are shares of it.
    Raises ValueError where the packed sequences do not fill one batch.
    """

    def __init__(self, model: DistilBertForMaskedLM, tokenizer, packed: np.ndarray, *,
                 tokens: int, seed: int = 0, batch_size: int = 32, mask_rate: float = 0.3,
                 peak: float = 5e-4, warmup: float = 0.02, decay: float = 0.5,
                 head_first: float = 0.04, layer_decay: float = 0.9, hold: float = 0.0,
                 optimizer: str = "adamw", dtype: torch.dtype = torch.bfloat16,
                 device: str = "cpu"):
        if len(packed) < batch_size:
            raise ValueError(f"{len(packed)} packed sequences do not fill a batch of {batch_size}; "
                             "give more text, or a smaller batch_size or length")
        self.tokenizer, self.packed, self.seed = tokenizer, packed, seed
        self.batch_size, self.mask_rate, self.peak = batch_size, mask_rate, peak
        self.warmup, self.decay, self.head_first = warmup, decay, head_first
        self.tokens = tokens
        self.device, self.step = device, 0
        self.model = model.to(device=device, dtype=dtype)
        for module in model.modules():  # one pass over much text: dropout would only slow it
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        self.weights = {"masked_lm": 1.0, "cosine": hold}
        self.anchor = copy.deepcopy(model.distilbert).eval().requires_grad_(False) if hold else None
        groups = _parameter_groups(self.model, layer_decay)
        self.working = [group["params"][0] for group in groups]
        self.masters = [p.detach().float().clone() for p in self.working]
        for group, master in zip(groups, self.masters):
            group["params"] = [master]
        self.optimizers = _optimizers(groups, peak, optimizer)

    @property
    def tokens_seen(self) -> int:
        return self.step * self.batch_size * self.packed.shape[1]

    @property
    def head_only(self) -> bool:
        """Whether the encoder is still fixed at this step."""
        return self.tokens_seen < self.head_first * self.tokens

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The clean ids, masked ids and labels of one step; every epoch has its own order."""
        per_epoch = len(self.packed) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.packed))
        ids = self.packed[order[position * self.batch_size:(position + 1) * self.batch_size]]
        rng = np.random.default_rng([self.seed, 1, step])
        masked, labels = mask(ids, self.tokenizer, self.mask_rate, rng)
        return tuple(torch.from_numpy(x).to(self.device)
                     for x in (ids.astype(np.int64), masked, labels))

    def losses(self, clean: torch.Tensor, masked: torch.Tensor,
               labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses of one batch by name; `weights` says how much each counts."""
        drawn = labels != IGNORED
        with torch.set_grad_enabled(not self.head_only):
            hidden = self.model.distilbert(input_ids=masked).last_hidden_state
        projector = self.model.vocab_projector
        weight = projector.weight.detach() if self.head_only else projector.weight
        losses = {"masked_lm": _ProjectedCrossEntropy.apply(
            head_states(self.model, hidden[drawn]), weight, projector.bias, labels[drawn])}
        if self.anchor is not None and not self.head_only:
            with torch.no_grad():
                kept = self.anchor(input_ids=clean).last_hidden_state
            losses["cosine"] = cosine_loss(hidden[~drawn], kept[~drawn])
        return losses

    def train_step(self) -> dict[str, float]:
        """One update; returns each loss before it, unweighted."""
        self.model.train()
        losses = self.losses(*self.batch(self.step))
        sum(self.weights[name] * loss for name, loss in losses.items()).backward()
        rate = learning_rate(self.tokens_seen, self.tokens, self.peak, self.warmup, self.decay)
        for group in (g for o in self.optimizers for g in o.param_groups):
            group["lr"] = rate * group["scale"] * (group["head"] or not self.head_only)
        self._update()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def _update(self) -> None:
        for parameter, master in zip(self.working, self.masters):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.working, self.masters):
                parameter.copy_(master)

    def state_dict(self) -> dict:
        return {"step": self.step, "masters": self.masters,
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        with torch.no_grad():
            for master, parameter, saved in zip(self.masters, self.working, state["masters"]):
                master.copy_(saved)
                parameter.copy_(saved)


def check_fit(teacher: DistilBertForMaskedLM, student: DistilBertForMaskedLM,
              weights: Mapping[str, float] = PAPER_WEIGHTS, temperature: float = 2.0) -> None:
    """Raise ValueError where a student cannot learn so from a teacher; no text is needed yet."""
    if set(weights) != set(PAPER_WEIGHTS):
        raise ValueError(f"weights: {sorted(weights)}; give one for each of "
                         f"{sorted(PAPER_WEIGHTS)}, 0 to leave a loss out")
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ValueError(f"weights: {dict(weights)}; none below 0, at least one above")
    if temperature <= 0:
        raise ValueError(f"temperature: {temperature}; it must be above 0")
    words = teacher.config.vocab_size, student.config.vocab_size
    if words[0] != words[1]:
        raise ValueError(f"vocabularies differ: {words[0]:,} words in the teacher, "
                         f"{words[1]:,} in the student; use checkpoints of one vocabulary")
    widths = teacher.config.dim, student.config.dim
    if weights["cosine"] and widths[0] != widths[1]:
        raise ValueError(f"cosine: the teacher's hidden states are {widths[0]} wide, the "
                         f"student's {widths[1]}; use equal widths, or weight 0")


class Distiller(Pretrainer):
    """The same loop with a teacher: the three losses of DistilBERT, each with its weight.

    `weights` has the keys of PAPER_WEIGHTS; a loss of weight 0 is left out and not computed.
    The distillation and masked-LM losses are taken at the masked positions, the cosine loss at
    all. The teacher is fixed, and gets no gradient. `loop` goes to Pretrainer.
    Raises ValueError where teacher and student do not fit, or a weight makes no sense.
    Source: Sanh et al. 2019; the notebook `knowledge-distillation.ipynb`.
    """

    def __init__(self, student: DistilBertForMaskedLM, teacher: DistilBertForMaskedLM, tokenizer,
                 packed: np.ndarray, *, tokens: int, weights: Mapping[str, float] = PAPER_WEIGHTS,
                 temperature: float = 2.0, mask_rate: float = 0.15, head_first: float = 0.0,
                 layer_decay: float = 1.0, dtype: torch.dtype = torch.float32, **loop):
        check_fit(teacher, student, weights, temperature)
        super().__init__(student, tokenizer, packed, tokens=tokens, mask_rate=mask_rate,
                         head_first=head_first, layer_decay=layer_decay, dtype=dtype, **loop)
        self.weights, self.temperature = dict(weights), temperature
        self.teacher = copy.deepcopy(teacher).to(device=self.device, dtype=dtype)
        self.teacher.eval().requires_grad_(False)

    def losses(self, clean: torch.Tensor, masked: torch.Tensor,
               labels: torch.Tensor) -> dict[str, torch.Tensor]:
        drawn, weights, losses = labels != IGNORED, self.weights, {}
        with torch.set_grad_enabled(not self.head_only):
            hidden = self.model.distilbert(input_ids=masked).last_hidden_state
        if weights["distillation"] or weights["cosine"]:
            taught = self.teacher.distilbert(input_ids=masked).last_hidden_state
        if weights["distillation"] or weights["masked_lm"]:
            logits = self.model.vocab_projector(head_states(self.model, hidden[drawn]))
        if weights["distillation"]:
            taught_logits = self.teacher.vocab_projector(head_states(self.teacher, taught[drawn]))
            losses["distillation"] = distillation_loss(logits, taught_logits, self.temperature)
        if weights["masked_lm"]:
            losses["masked_lm"] = masked_lm_loss(logits, labels[drawn])
        if weights["cosine"]:
            losses["cosine"] = cosine_loss(hidden.flatten(0, 1), taught.flatten(0, 1))
        return losses


@torch.inference_mode()
def predict_masked(model: DistilBertForMaskedLM, tokenizer, packed: np.ndarray, *,
                   rate: float = 0.15, seed: int = 0, limit: int | None = None,
                   only_mask: bool = False, batch_size: int = 32,
                   progress: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The right id, the model's first choice and the sequence's number of each masked token.

    `limit` stops after that many masked tokens. The masks depend on (seed, batch_size) alone,
    so models are compared on the same tokens; the sequence is what a bootstrap resamples.
    """
    device = model.distilbert.embeddings.word_embeddings.weight.device
    model.eval()
    found, count = [], 0
    starts = range(0, len(packed), batch_size)
    for start in report.bar(starts, progress, desc="evaluate"):
        rng = np.random.default_rng([seed, 2, start])
        ids, labels = mask(packed[start:start + batch_size], tokenizer, rate, rng, only_mask)
        drawn = labels != IGNORED
        hidden = model.distilbert(input_ids=torch.from_numpy(ids).to(device)).last_hidden_state
        hidden = hidden[torch.from_numpy(drawn).to(device)]
        best = model.vocab_projector(head_states(model, hidden)).argmax(-1).cpu().numpy()
        found.append((labels[drawn], best, start + np.nonzero(drawn)[0]))
        count += len(best)
        if limit and count >= limit:
            break
    gold, predicted, sequence = (np.concatenate(parts)[:limit] for parts in zip(*found))
    return gold, predicted, sequence


# ---------------------------------------------------------------- the recipe, from a shell

def _write_aside(path: Path, write: Callable[[Path], None]) -> None:
    aside = path.with_name(path.name + ".part")
    write(aside)
    os.replace(aside, path)


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def split_corpus(corpus: str | Path, held_out: float,
                 exclude_titles: str | Path | None = None) -> tuple[list[str], list[str]]:
    """Read a corpus and split it by title: the texts to train on, and those held out.

    The titles of the file `exclude_titles`, one a line, are in neither. Raises as read_corpus.
    """
    excluded = set()
    if exclude_titles:
        lines = Path(exclude_titles).read_text(encoding="utf-8").splitlines()
        excluded = {_same_title(line) for line in lines if line.strip()}
    train, held = [], []
    for title, text in read_corpus(corpus):
        if _same_title(title) in excluded:
            continue
        # long books are cut so that a part of the corpus holds a part of every kind
        pieces = [text[i:i + 20_000] for i in range(0, len(text), 20_000)]
        (held if is_held_out(title, held_out) else train).extend(filter(str.strip, pieces))
    return train, held


def prepare(corpus: str | Path, tokenizer, output_dir: Path, *, length: int, tokens: int,
            held_out: float, exclude_titles: str | None = None,
            seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split the corpus by title, pack both parts in a seeded order, and keep them beside the run.

    Returns the training and the held-out sequences. Raises ValueError where one of the parts
    has too little text.
    """
    paths = output_dir / "train.npy", output_dir / "held_out.npy"
    if not all(p.exists() for p in paths):
        train, held = split_corpus(corpus, held_out, exclude_titles)
        rng = np.random.default_rng(seed)
        packed = []
        for name, texts, limit in (("training", train, tokens), ("held-out", held, 2_000_000)):
            order = rng.permutation(len(texts))
            try:
                packed.append(pack((texts[i] for i in order), tokenizer, length, limit, True))
            except ValueError as error:
                raise ValueError(f"{corpus}: the {name} part is too small ({error}); change "
                                 "--held_out or --length, or give more text") from error
        for path, array in zip(paths, packed):
            _write_aside(path, lambda aside, array=array: _save_array(aside, array))
    return np.load(paths[0]), np.load(paths[1])


def _keep_settings(output_dir: Path, settings: Mapping) -> None:
    """Write a run's settings, or refuse to go on with others than it was prepared with."""
    path = output_dir / "settings.json"
    settings = {k: v for k, v in settings.items() if k not in ("output_dir", "save_every")}
    if path.exists() and (output_dir / "held_out.npy").exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"--{k} was {begun.get(k)}, is {v}" for k, v in settings.items()
                   if begun.get(k) != v]
        if changed:
            raise ValueError(f"{output_dir} holds a run with other settings: "
                             f"{'; '.join(changed)}; give these, or another --output_dir")
    _write_aside(path, lambda aside: aside.write_text(json.dumps(settings, indent=2) + "\n"))


def _number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value
    convert.__name__ = kind.__name__  # argparse's own message for "abc" names it
    return convert


def _parser() -> argparse.ArgumentParser:
    class Format(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        pass

    count, share = _number(int, 1), _number(float, 0, 1)
    parser = argparse.ArgumentParser(prog="python -m helpers.pretraining", description=__doc__,
                                     formatter_class=Format)
    add = parser.add_argument
    add("--init", required=True, help="folder of a BERT or DistilBERT checkpoint")
    add("--corpus", required=True, help="folder of parquet, csv or jsonl files: title, text")
    add("--output_dir", type=Path, required=True, help="sequences, state, log.jsonl and model/")
    add("--exclude_titles", help="file with a title a line, never trained on")
    add("--tokens", type=count, default=10_000_000, help="tokens to train on")
    add("--corpus_tokens", type=count, help="tokens to pack, none for --tokens")
    add("--length", type=_number(int, 8, 512), default=128, help="tokens of a sequence")
    add("--held_out", type=share, default=0.01, help="share of titles kept out of training")
    add("--batch_size", type=count, default=32, help=parameters.TYPES["batch_size"][1])
    add("--mask_rate", type=share, default=0.3, help="share of tokens to predict")
    add("--learning_rate", type=_number(float, 0, 1), default=5e-4,
        help=parameters.TYPES["learning_rate"][1])
    add("--warmup", type=share, default=0.02, help="share of tokens with a rising rate")
    add("--decay", type=share, default=0.5, help="share of tokens, the last, with a falling rate")
    add("--head_first", type=share, default=0.04, help="share of tokens with a fixed encoder")
    add("--layer_decay", type=share, default=0.9, help="learning rate of a layer to the one above")
    add("--hold", type=_number(float, 0), default=1.0,
        help="weight of the cosine loss to the starting encoder")
    add("--optimizer", choices=("adamw", "muon"), default="adamw",
        help="of the layers' matrices; all else learns by AdamW")
    add("--seed", type=_number(int, 0, 2**32 - 1), default=0, help=parameters.TYPES["seed"][1])
    add("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto",
        help=parameters.TYPES["device"][1])
    add("--precision", choices=("fp32", "bf16"), default="bf16",
        help="of the working weights; the masters are fp32")
    add("--save_every", type=count, default=500_000, help="tokens between states")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        _pretrain(options)
    except (ValueError, OSError) as error:
        print(f"python -m helpers.pretraining: {error}", file=sys.stderr)
        return 2
    return 0


def _pretrain(a: argparse.Namespace) -> None:
    """Prepare the text, train or go on training, and save the model in fp16."""
    if not Path(a.init, "config.json").is_file():
        raise ValueError(f"--init: no checkpoint in {a.init}; give a folder with a config.json")
    config = AutoConfig.from_pretrained(a.init)
    if a.length > config.max_position_embeddings:
        raise ValueError(f"--length: {a.length}; the model has only "
                         f"{config.max_position_embeddings} positions")
    a.output_dir.mkdir(parents=True, exist_ok=True)
    _keep_settings(a.output_dir, vars(a))
    torch.manual_seed(a.seed)
    device = checkpoints.pick_device(a.device)
    tokenizer = AutoTokenizer.from_pretrained(a.init)
    train, held = prepare(a.corpus, tokenizer, a.output_dir, length=a.length,
                          tokens=a.corpus_tokens or a.tokens, held_out=a.held_out,
                          exclude_titles=a.exclude_titles, seed=a.seed)
    model = start_from(a.init)
    model.set_attn_implementation("eager" if device == "cpu" else "sdpa")
    if not _has_head(config):
        counts = np.bincount(train.ravel(), minlength=config.vocab_size) + 0.1
        with torch.no_grad():  # a new head starts from the words' own frequencies
            model.vocab_projector.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    trainer = Pretrainer(model, tokenizer, train, seed=a.seed, batch_size=a.batch_size,
                         mask_rate=a.mask_rate, peak=a.learning_rate, warmup=a.warmup,
                         decay=a.decay, head_first=a.head_first,
                         layer_decay=a.layer_decay, hold=a.hold, optimizer=a.optimizer,
                         tokens=a.tokens, dtype=checkpoints.pick_dtype(a.precision), device=device)
    with memory.kept():
        _train(trainer, held, a.output_dir, a.save_every)
    with torch.no_grad():
        for parameter, master in zip(trainer.working, trainer.masters):
            parameter.data = master.data
    model.config.dtype = None
    final = AutoModelForMaskedLM.from_config(model.config)
    final.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    folder, aside = a.output_dir / "model", a.output_dir / "model.part"
    final.half().save_pretrained(aside)
    saved = json.loads((aside / "config.json").read_text(encoding="utf-8"))
    # stored in half the space, but plain from_pretrained shall compute in fp32
    report.save_json(aside / "config.json", {**saved, "dtype": "float32"})
    tokenizer.backend_tokenizer.no_truncation()  # a sentence encoder's tokenizer cuts and pads
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def _train(trainer: Pretrainer, held: np.ndarray, output_dir: Path, save_every: int) -> None:
    """Train to the end of the schedule, from the last state where there is one."""
    state, log = output_dir / "state.pt", output_dir / "log.jsonl"
    if state.exists():
        trainer.load_state_dict(torch.load(state, weights_only=True))
    per_step, losses, began = trainer.batch_size * trainer.packed.shape[1], [], time.monotonic()
    with report.bar(total=trainer.tokens, initial=trainer.tokens_seen, unit=" tokens",
                    unit_scale=True) as bar:
        while trainer.tokens_seen < trainer.tokens:
            losses.append(trainer.train_step()["masked_lm"])
            bar.update(per_step)
            seen = trainer.tokens_seen
            if seen < trainer.tokens and seen % save_every >= per_step:
                continue
            _write_aside(state, lambda aside: torch.save(trainer.state_dict(), aside))
            gold, predicted, _ = predict_masked(trainer.model, trainer.tokenizer, held,
                                                limit=20_000)
            row = {"tokens": seen, "loss": round(float(np.mean(losses)), 4),
                   "accuracy": round(float((gold == predicted).mean()), 4),
                   "seconds": round(time.monotonic() - began, 1)}
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            bar.write(json.dumps(row), file=sys.stderr)
            losses, began = [], time.monotonic()


if __name__ == "__main__":
    sys.exit(main())
