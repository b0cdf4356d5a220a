"""Where a model comes from: `embedded`, a folder, or the Hub at a pinned revision.

Every source ends as a local folder that `from_pretrained` reads; the notebooks call that in
plain sight. Weights are read from safetensors only.
"""

import json
import os
import re
from pathlib import Path

from helpers.report import PROJECT

EMBEDDED = PROJECT / "samples" / "checkpoints" / "distilbert-mini-uncased"
# Hub names that need no `revision`: the commits this project was written against.
REVISIONS = {
    "distilbert/distilbert-base-uncased": "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
}
OWNERS = {"distilbert-base-uncased": "distilbert", "bert-base-uncased": "google-bert"}
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
         "special_tokens_map.json", "*.safetensors", "model.safetensors.index.json"]


def is_path(source: str) -> bool:
    """Whether a checkpoint or data set is given as a path, and not as a name on the Hub.

    What exists, here or in the project's folder, is a path whatever it looks like.
    """
    return (source.startswith((".", "/", "~")) or source.count("/") > 1
            or Path(source).exists() or (PROJECT / source).exists())


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a full commit of the Hub: 40 hex digits."""
    return bool(re.fullmatch("[0-9a-f]{40}", revision or ""))


def find(checkpoint: str = "embedded", revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint, downloading it once where it is on the Hub.

    A name of the Hub that is not in REVISIONS needs `revision`, a commit of 40 hex digits. A
    download goes on where a connection broke; after a killed process, at the first file that
    is not whole.
    Raises ValueError or FileNotFoundError with one sentence saying what to do.
    """
    if checkpoint == "embedded":
        return _complete(EMBEDDED)
    if Path(checkpoint).expanduser().is_dir():
        return _complete(Path(checkpoint).expanduser().resolve())
    if is_path(checkpoint):
        raise FileNotFoundError(f"checkpoint: no folder {checkpoint}; give an existing folder, "
                                "embedded, or a name on the Hub")
    name = f"{OWNERS[checkpoint]}/{checkpoint}" if checkpoint in OWNERS else checkpoint
    revision = revision or REVISIONS.get(name)
    if not is_commit(revision):
        raise ValueError(f"revision: no folder {checkpoint} is here, and as a name on the Hub "
                         f"{name} needs its full commit (40 hex digits), got {revision!r}; give "
                         "an existing folder, embedded, or the commit")
    return _download(name, revision)


def deployed() -> Path:
    """Find the checkpoint that a deployment names in its environment.

    AZUREML_MODEL_DIR is set by Azure ML, and the model may lie in a folder below it; without
    it, or where it holds no file, CHECKPOINT and REVISION, else the embedded checkpoint.
    Raises as `find` does.
    """
    root = os.environ.get("AZUREML_MODEL_DIR")
    if not root or not any(path.is_file() for path in Path(root).rglob("*")):
        return find(os.environ.get("CHECKPOINT", "embedded"), os.environ.get("REVISION"))
    found = [path.parent for path in Path(root).rglob("config.json")
             if any(path.parent.glob("*.safetensors"))]
    nearest = min((len(folder.parts) for folder in found), default=0)
    found = [folder for folder in found if len(folder.parts) == nearest]
    if len(found) != 1:
        raise FileNotFoundError(f"AZUREML_MODEL_DIR: {len(found)} models in {root}; register one "
                                "folder with config.json and safetensors weights")
    return find(str(found[0]))


def pick_device(device: str = "auto") -> str:
    """Turn `auto` into the best device there is: cuda, mps or cpu."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def pick_dtype(precision: str = "fp32"):
    """The torch number format of the weights for a precision: fp32 or bf16."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def _missing(folder: Path) -> list[str]:
    """Files that a usable checkpoint lacks."""
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.exists():
        weights = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    wanted = ["config.json", *weights]
    if not (folder / "tokenizer.json").exists():
        wanted.append("vocab.txt")
    return [name for name in wanted if not (folder / name).exists()]


def _complete(folder: Path) -> Path:
    if missing := _missing(folder):
        raise FileNotFoundError(f"checkpoint: {folder} lacks {', '.join(missing)}; "
                                "save a model and its tokenizer there with save_pretrained")
    return folder


def _download(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (HfHubHTTPError, HFValidationError, HTTPError,
                                        LocalEntryNotFoundError, RevisionNotFoundError)

    wanted = {"repo_id": name, "revision": revision, "allow_patterns": FILES}
    other = "or use checkpoint=embedded or a folder"
    try:  # a commit never changes: what is here needs no network
        folder = Path(snapshot_download(**wanted, local_files_only=True))
        if not _missing(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError:
        raise FileNotFoundError(f"checkpoint: no folder {name}, and no name on the Hub can be "
                                "so; give an existing folder, embedded, or a name like "
                                "owner/name") from None
    try:
        folder = Path(snapshot_download(**wanted))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"revision: {name} has no commit {revision} on the Hub; take one "
                                f"of its page \"Files and versions\", {other}") from error
    except (OSError, HTTPError) as error:  # the Hub's own failures and the network's
        local = isinstance(error, LocalEntryNotFoundError)
        reason = local and error.__cause__ or error
        said = type(reason).__name__
        if isinstance(reason, HfHubHTTPError):
            said = f"status {reason.response.status_code}"
            if reason.response.status_code in (401, 403, 404):  # one answer to all strangers
                raise FileNotFoundError(f"checkpoint: the Hub shows no {name}; check the name (a "
                                        f"private one needs HF_TOKEN), {other}") from error
        raise FileNotFoundError(f"checkpoint: {name} at {revision[:7]} could not be had from the "
                                f"Hub ({said}); check the network and try again, {other}"
                                ) from error
    return _complete(folder)
