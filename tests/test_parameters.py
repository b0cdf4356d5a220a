"""One table of parameters: types, ranges, names, and how papermill's strings are refused."""

import pytest

from helpers import parameters


@pytest.mark.parametrize("name,value", [
    ("azure", False), ("epochs", 1), ("epochs", 0.5), ("epochs", 2.0), ("seed", 0),
    ("revision", None), ("max_eval_samples", None), ("max_eval_samples", 10),
    ("device", "cpu"), ("precision", "bf16"),
    ("learning_rate", 2e-5), ("checkpoint", "distilbert-base-uncased"),
])
def test_good_values(name, value):
    parameters.check(**{name: value})


@pytest.mark.parametrize("name,value,said", [
    ("azure", "false", "write False"), ("azure", "true", "write True"), ("azure", 1, "bool"),
    ("seed", "3", 'the string "3"'), ("seed", True, "integer"), ("seed", -1, "greater"),
    ("seed", 1.0, "integer"), ("epochs", True, "number"), ("epochs", 0, "greater"),
    ("epochs", "2", "number"), ("epochs", float("nan"), "epochs"), ("revision", "", "character"),
    ("revision", "None", None), ("device", "gpu", "'cuda'"), ("precision", "fp16", "'fp32'"),
    ("batch_size", 0, "greater"), ("learning_rate", 1, "less"), ("max_eval_samples", 0, "greater"),
    ("checkpoint", 3, "string"), ("epoch", 1, "did you mean epochs?"), ("nonsense", 1, "unknown"),
])
def test_bad_values(name, value, said):
    if said is None:  # any string is a revision by type; checkpoints refuses it by form
        parameters.check(**{name: value})
        return
    with pytest.raises(ValueError, match=name) as error:
        parameters.check(**{name: value})
    assert said in str(error.value)


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError) as error:
        parameters.check(seed="x", epochs=-1, azure=True)
    assert "seed" in str(error.value) and "epochs" in str(error.value)
    assert "azure" not in str(error.value)


@pytest.mark.parametrize("text,value", [
    ("1", 1), ("1e-4", 1e-4), ("True", True), ("None", None), ("false", "false"), ("a b", "a b"),
    ("[1]", "[1]"), ("-3", -3),
])
def test_literals_are_read_as_papermill_reads_them(text, value):
    from papermill.cli import _resolve_type

    assert parameters.literal(text) == value
    if text not in ("false",):  # papermill, too, leaves this one a string
        assert _resolve_type(text) == value


def test_the_command_line_uses_the_same_table(capsys):
    parser = parameters.parser({"epochs": 2, "seed": 0, "checkpoint": "embedded", "revision": None})
    options = parser.parse_args(["--epochs", "0.5", "--checkpoint", "2024"])
    assert vars(options) == {"epochs": 0.5, "seed": 0, "checkpoint": "2024", "revision": None}
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "many"])
    assert "seed" in capsys.readouterr().err


def test_every_parameter_has_a_help_text():
    assert all(text for _, text in parameters.TYPES.values())
