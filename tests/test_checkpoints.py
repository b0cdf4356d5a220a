"""Where a checkpoint comes from, the Hub included: a Hub-shaped server on loopback."""

import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

from helpers import checkpoints, fill_mask
from tests import hub_server, verify_hub
from tests.conftest import PROJECT, shared_folder

NAME = "distilbert/distilbert-base-uncased"
PINNED = checkpoints.REVISIONS[NAME]
NEWER = "f" * 40
FIND = "import sys; from helpers import checkpoints; print(checkpoints.find(*sys.argv[1:]))"
CUT = 12 * 2**20  # the client keeps what came in whole pieces of 10 MiB


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Two commits of distilbert-base-uncased's layout, with different small random weights."""
    try:
        source = shared_folder("hub", *NAME.split("/"))
    except pytest.skip.Exception:
        source = checkpoints.EMBEDDED
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"commit-{seed}")
        for file in source.iterdir():
            if not file.name.endswith(".safetensors"):
                shutil.copyfile(file, folder / file.name)
        config = DistilBertConfig.from_pretrained(
            source, dim=128, hidden_dim=64, n_heads=2, n_layers=1)
        torch.manual_seed(seed)
        DistilBertForMaskedLM(config).save_pretrained(folder)
        for other in ("README.md", ".gitattributes", "tf_model.h5", "pytorch_model.bin"):
            (folder / other).write_bytes(b"not wanted")
        folders.append(folder)
    assert (folders[0] / "model.safetensors").stat().st_size > CUT
    return folders


@pytest.fixture
def hub(layouts):
    repository = hub_server.Repository({PINNED: layouts[0], NEWER: layouts[1]})
    with hub_server.serve({NAME: repository}) as hub:
        yield hub


def find(hub, home, *arguments, **environment):
    """Run checkpoints.find in a process of its own, which knows this Hub only."""
    return subprocess.run(
        [sys.executable, "-c", FIND, *arguments], env=hub.environment(home) | environment,
        capture_output=True, text=True, timeout=120)


def the_one_sentence(result) -> str:
    """The error's own line, the last of a traceback."""
    assert result.returncode == 1, result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith(("FileNotFoundError: ", "ValueError: ")), result.stderr
    return lines[-1].partition(": ")[2]


def test_the_pinned_commit_is_downloaded_once_and_answers(hub, layouts, tmp_path):
    code = ("from helpers import checkpoints, fill_mask\n"
            "fill = fill_mask.load(checkpoints.find('distilbert-base-uncased'), 'cpu')\n"
            "print([c['token'] for c in fill('Paris is the [MASK] of France.')[0]])")
    result = subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path),
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    answer = fill_mask.load(layouts[0], "cpu")("Paris is the [MASK] of France.")[0]
    newer = fill_mask.load(layouts[1], "cpu")("Paris is the [MASK] of France.")[0]
    assert result.stdout.strip() == str([c["token"] for c in answer])
    assert [c["token"] for c in answer] != [c["token"] for c in newer]
    assert not any(NEWER in r.path or "/main" in r.path for r in hub.requests)
    fetched = {r.path.rpartition("/")[2] for r in hub.files()}
    assert "model.safetensors" in fetched and "tokenizer.json" in fetched
    assert not fetched & {"README.md", "tf_model.h5", "pytorch_model.bin", ".gitattributes"}

    hub.requests.clear()
    again = find(hub, tmp_path, "distilbert-base-uncased")
    assert again.returncode == 0 and hub.requests == []
    assert PINNED in again.stdout
    offline = find(hub, tmp_path, NAME, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert offline.stdout == again.stdout


def test_a_given_revision_is_the_one_taken(hub, layouts, tmp_path):
    result = find(hub, tmp_path, "distilbert-base-uncased", NEWER)
    folder = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}" / "snapshots" / NEWER
    assert result.stdout.strip() == str(folder)
    assert (folder / "model.safetensors").read_bytes() == (
        layouts[1] / "model.safetensors").read_bytes()


def test_a_broken_connection_is_resumed_by_the_same_process_where_it_broke(hub, layouts, tmp_path):
    hub.cut("model.safetensors", after=CUT, times=1)
    result = find(hub, tmp_path, NAME)
    assert result.returncode == 0, result.stderr
    first, second = [r for r in hub.files() if r.path.endswith("model.safetensors")]
    assert first.range is None and first.sent == CUT
    start = int(second.range.removeprefix("bytes=").rstrip("-"))
    size = (layouts[0] / "model.safetensors").stat().st_size
    assert second.range == f"bytes={start}-" and second.sent == size - start
    assert 0 <= CUT - start < 10 * 2**20  # no more than one piece came twice
    downloaded = next(tmp_path.rglob("snapshots/*/model.safetensors"))
    assert downloaded.read_bytes() == (layouts[0] / "model.safetensors").read_bytes()


def test_a_killed_download_starts_again_at_the_file_that_is_not_whole(hub, layouts, tmp_path):
    release = hub.stall("model.safetensors", after=CUT)
    process = subprocess.Popen([sys.executable, "-c", FIND, NAME], env=hub.environment(tmp_path),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(60)
    while len(list(tmp_path.rglob("snapshots/*/*"))) < 4:  # the small files have come
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    release.set()
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
    hub.requests.clear()
    result = find(hub, tmp_path, NAME)
    assert result.returncode == 0, result.stderr
    [again] = hub.files()  # what came whole before is not asked for
    assert again.path.endswith("/model.safetensors") and again.range is None
    assert again.sent == (layouts[0] / "model.safetensors").stat().st_size
    downloaded = next(tmp_path.rglob("snapshots/*/model.safetensors"))
    assert downloaded.read_bytes() == (layouts[0] / "model.safetensors").read_bytes()


def test_a_connection_that_always_breaks_ends_in_one_sentence(hub, tmp_path):
    hub.cut("model.safetensors", after=100, times=50)
    said = the_one_sentence(find(hub, tmp_path, NAME))
    assert said.startswith(f"checkpoint: {NAME} at 1204") and "try again" in said
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))


def test_an_unreachable_hub_ends_in_one_sentence(hub, tmp_path):
    said = the_one_sentence(find(hub, tmp_path, NAME, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "(ConnectError); check the network and try again, or use checkpoint=embedded" in said


def test_offline_mode_ends_in_one_sentence(hub, tmp_path):
    said = the_one_sentence(find(hub, tmp_path, NAME, HF_HUB_OFFLINE="1"))
    assert "(OfflineModeIsEnabled)" in said and hub.requests == []


def test_a_repository_that_is_not_there_ends_in_one_sentence(hub, tmp_path):
    said = the_one_sentence(find(hub, tmp_path, "nobody/nothing", NEWER))
    assert said.startswith("checkpoint: the Hub shows no nobody/nothing; check the name")


def test_a_commit_that_is_not_there_ends_in_one_sentence(hub, tmp_path):
    said = the_one_sentence(find(hub, tmp_path, NAME, "e" * 40))
    assert said.startswith(f"revision: {NAME} has no commit eeee")


def test_a_repository_without_safetensors_ends_in_one_sentence(hub, layouts, tmp_path):
    poor = tmp_path / "poor"
    shutil.copytree(layouts[0], poor)
    (poor / "model.safetensors").unlink()
    hub.repositories["a/poor"] = hub_server.Repository({NEWER: poor})
    said = the_one_sentence(find(hub, tmp_path / "home", "a/poor", NEWER))
    assert "lacks model.safetensors" in said


@pytest.mark.parametrize("revision", [None, "main", "abc", "g" * 40])
def test_a_name_without_a_pin_needs_a_full_commit(revision):
    with pytest.raises(ValueError, match="^revision: no folder a/b is here, and as a name on the "
                       "Hub a/b needs its full commit .40 hex digits., got .*; give an existing"):
        checkpoints.find("a/b", revision)


@pytest.mark.parametrize("name", ["my model", "a/my model", "a--b", "x.git", "-x/y"])
def test_what_can_be_no_name_on_the_hub_is_refused(name):
    with pytest.raises(FileNotFoundError, match=f"^checkpoint: no folder {name}, and no name on "
                       "the Hub can be so; give an existing folder, embedded, or"):
        checkpoints.find(name, NEWER)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"^checkpoint: no folder {name}"):
        checkpoints.find(name)


def test_a_folder_must_hold_a_model_and_its_tokenizer(tiny_checkpoint, tmp_path):
    assert checkpoints.find(str(tiny_checkpoint)) == tiny_checkpoint.resolve()
    with pytest.raises(FileNotFoundError, match="lacks config.json, model.safetensors, vocab.txt"):
        checkpoints.find(str(tmp_path))
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks config.json, model.safetensors; save"):
        checkpoints.find(str(tmp_path))


def test_device_and_precision_are_picked():
    assert checkpoints.pick_device("cpu") == "cpu"
    assert checkpoints.pick_device("auto") in ("cuda", "mps", "cpu")
    assert checkpoints.pick_dtype("bf16") == torch.bfloat16
    assert checkpoints.pick_dtype("fp32") == checkpoints.pick_dtype("int8") == torch.float32


def test_the_cards_golden_answers_where_a_copy_is_cached():
    try:
        folder = checkpoints.find("distilbert-base-uncased")
    except FileNotFoundError as error:
        pytest.skip(f"needs the weights of distilbert-base-uncased: {error}")
    answers = fill_mask.load(folder, device="cpu")(verify_hub.TEXTS, top_k=2)
    assert verify_hub.differences(answers) == []


def test_verify_hub_fails_on_other_weights_and_says_when_it_was_skipped(hub, tmp_path):
    def verify(**environment):
        return subprocess.run([sys.executable, "-m", "tests.verify_hub"], cwd=PROJECT,
                              env=hub.environment(tmp_path) | environment,
                              capture_output=True, text=True, timeout=120)

    skipped = verify(HF_HUB_OFFLINE="1")
    assert skipped.returncode == 0
    assert skipped.stdout.startswith(f"skipped: checkpoint: {NAME}")
    failed = verify()
    assert failed.returncode == 1, failed.stderr
    assert "rank 1: the card has capital (3007) 0.981547, here " in failed.stdout


def test_the_card_agrees_with_itself():
    card = [[{"score": score + 9e-4, "token": token, "token_str": word}
             for word, token, score in answer] for answer in verify_hub.GOLDEN]
    assert verify_hub.differences(card) == []
    card[1][0]["score"] += 2e-3
    card[0][1]["token"] = 1
    assert len(verify_hub.differences(card)) == 2


@pytest.mark.soak
def test_a_hub_that_is_down_ends_in_one_sentence(hub, tmp_path):
    hub.down = True
    assert "(status 503); check the network and try again" in the_one_sentence(
        find(hub, tmp_path, NAME))
