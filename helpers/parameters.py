"""The parameters that notebooks, papermill, Azure ML jobs and command lines share.

One name means one thing everywhere; TYPES is the whole vocabulary.
"""

import argparse
import ast
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Optional

from pydantic import Field, Strict, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError

Text = Annotated[StrictStr, Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]

TYPES: dict[str, tuple[Any, str]] = {
    "checkpoint": (Text, "embedded, a folder, or a name on the Hub"),
    "revision": (Optional[Text], "commit of a Hub checkpoint; none for the pinned one"),
    "dataset": (Text, "embedded, a folder or file, or a name on the Hub"),
    "seed": (Annotated[StrictInt, Field(ge=0, lt=2**32)], "seed of everything random"),
    "output_dir": (Text, "folder of the results, relative to the project"),
    "device": (Literal["auto", "cuda", "mps", "cpu"], "where to compute"),
    "precision": (Literal["fp32", "bf16"], "number format; fp32 is exact"),
    "max_train_samples": (Optional[Count], "use only so many training rows; none for all"),
    "max_eval_samples": (Optional[Count], "use only so many evaluation rows; none for all"),
    "epochs": (Annotated[float, Strict(), Field(gt=0, le=1000)], "passes over the training rows"),
    "batch_size": (Count, "rows in one step"),
    "learning_rate": (Annotated[float, Strict(), Field(gt=0, lt=1)], "peak learning rate"),
    "task": (Literal["text-classification", "token-classification", "question-answering"],
             "what to train for"),
    "columns": (Optional[Text], "the data's own column names, as text=tweet,label=feeling"),
    "patience": (Optional[Count], "stop after so many epochs without a better metric"),
    "azure": (StrictBool, "submit to Azure ML instead of only showing the objects"),
    "keep": (StrictBool, "keep what was created on Azure"),
    "top_k": (Count, "candidates per mask"),
    "words_per_text": (Count, "words masked in each text, one at a time"),
    "other_checkpoint": (Optional[Text], "the model to compare with; none for the same one "
                         "with every other layer dropped"),
    "timed_requests": (Count, "requests whose latency is measured"),
    "teacher": (Text, "the model to learn from: embedded, a folder, or a name on the Hub"),
    "layers": (Count, "layers of the student; they must divide the teacher's"),
    "temperature": (Positive, "softness of the teacher's answers; 1 leaves them as they are"),
    "distillation_weight": (Weight, "weight of the distillation loss; 0 leaves it out"),
    "masked_lm_weight": (Weight, "weight of the masked-LM loss; 0 leaves it out"),
    "cosine_weight": (Weight, "weight of the cosine loss; 0 leaves it out"),
    "steps": (Count, "updates of each training"),
}


def problem(name: str, value: Any) -> str | None:
    """Say what is wrong with one parameter, or None."""
    if name not in TYPES:
        near = difflib.get_close_matches(name, TYPES, n=1)
        return f"{name}: unknown parameter" + (f"; did you mean {near[0]}?" if near else "")
    try:
        TypeAdapter(TYPES[name][0]).validate_python(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Input ")
        hint = ""
        if isinstance(value, str) and value.lower() in ("true", "false", "none", "null"):
            right = {"true": "True", "false": "False"}.get(value.lower(), "None")
            hint = f' (the string "{value}"; write {right})'
        elif isinstance(value, str):
            hint = f' (the string "{value}")'
        return f"{name}: {said}, got {value!r}{hint}"
    return None


def check(**values: Any) -> dict[str, Any]:
    """Check names, types and ranges of parameters in one call, and return them.

    Raises ValueError naming every parameter that is wrong, what it is and what it should be.
    """
    problems = [text for name, value in values.items() if (text := problem(name, value))]
    if problems:
        raise ValueError("; ".join(problems))
    return values


def literal(text: str) -> Any:
    """Read a command-line value as papermill does: numbers, True, False, None, else a string."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, (int, float, bool, type(None))) else text


def parser(defaults: Mapping[str, Any], **options: Any) -> argparse.ArgumentParser:
    """Build a command line with one option per name of `defaults`, checked by the same table."""
    result = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options)

    def read(name: str):
        def convert(text: str) -> Any:
            value = literal(text)
            if isinstance(value, (int, float)) and problem(name, text) is None:
                value = text  # a folder may be named 2024
            if said := problem(name, value):
                raise argparse.ArgumentTypeError(said)
            return value
        return convert

    for name, default in defaults.items():
        result.add_argument(f"--{name}", type=read(name), default=default,
                            help=TYPES[name][1])
    return result
