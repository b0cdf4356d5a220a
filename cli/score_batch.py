"""Scoring script of the batch endpoint, and its local driver.

    python cli/score_batch.py INPUT OUTPUT [--checkpoint C] [--top_k K] [--workers N] ...

INPUT is a .csv or .jsonl file or a folder of them, with a column or field `input_string`.
For each file OUTPUT gets predictions/<path>.csv and errors/<path>.csv; every row is in one of
the two. Started again after a kill, it goes on with the files that are not finished.
Exit status: 0 all files are finished (rows with errors are counted, they are no failure),
1 some are not, 2 wrong usage, 130 interrupted.

On Azure `init` and `run` are called by the batch deployment. Settings, all from environment
variables: AZUREML_MODEL_DIR, else CHECKPOINT and REVISION; AZUREML_BI_OUTPUT_PATH;
INPUT_FOLDER (below which paths are kept; Azure's own mount is recognized), PRECISION, DEVICE,
TOP_K, THREADS.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers, where not installed

from helpers import checkpoints, memory, parameters, report  # noqa: E402

service = {"report": None}  # what init leaves for run


def init():
    """Load the model; any error ends the job, with its reason."""
    import torch

    import helpers.batch  # noqa: F401 - now, not with the first file: it takes memory
    from helpers import fill_mask

    settings = {"top_k": int(os.environ.get("TOP_K", "5")),
                "precision": os.environ.get("PRECISION", "fp32"),
                "device": os.environ.get("DEVICE", "auto")}
    parameters.check(**settings)
    if "THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["THREADS"]))
    memory.give_back_blocks()
    memory.keep_products(16)
    service.update(
        fill=fill_mask.load(checkpoints.deployed(), settings["device"], settings["precision"]),
        top_k=settings["top_k"], output=Path(os.environ["AZUREML_BI_OUTPUT_PATH"]))


def run(mini_batch):
    """Score files; return one line per file. A finished file is not scored again."""
    lines = []
    for path in mini_batch:
        counts = score_file(path)
        lines.append(f"{name_of(path)}: " + ("finished before" if counts is None else
                     f"{counts.predictions:,} rows filled, {counts.errors:,} errors"))
    return lines


def score_file(path):
    """Score one file; return its counts, or None where it was finished before."""
    from helpers import batch

    name = name_of(path)
    if batch.finished(path, name, service["output"]):
        return None
    return batch.score(path, name, service["output"], service["fill"], service["top_k"],
                       service["report"])


def name_of(path):
    """The path of an input file below the input folder, the same in every worker.

    Where neither INPUT_FOLDER nor Azure's mount says what that folder is, the whole path is
    kept: two files must never share a name.
    """
    whole = Path(os.path.abspath(path))
    root = os.environ.get("INPUT_FOLDER")
    if root and whole.is_relative_to(os.path.abspath(root)):
        return whole.relative_to(os.path.abspath(root)).as_posix()
    mount = re.search("/data-capability/wd/[^/]+/(.+)", whole.as_posix())
    return mount[1] if mount else whole.relative_to(whole.anchor).as_posix()


# ---------------------------------------------------------------- the local driver

def main(arguments=None):
    options = read_options(arguments)
    try:
        files = find_files(options.input, options.output)
        configure(options)
        from helpers import batch
        todo = [path for path in files if not batch.finished(path, name_of(path), options.output)]
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(files)} files, {len(files) - len(todo)} of them finished before", flush=True)
    if not todo:
        return 0
    workers = share_cores(options.workers, options.device, len(todo))
    began = time.monotonic()
    try:
        counts, failures = score_all(todo, workers)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        print("interrupted; start it again to go on", file=sys.stderr)
        return 130
    seconds = time.monotonic() - began
    filled, errors = (sum(getattr(c, name) for c in counts) for name in ("predictions", "errors"))
    print(f"{len(counts)} files, {filled:,} rows filled, {errors:,} errors in {seconds:.1f} s, "
          f"{(filled + errors) / seconds:,.0f} rows/s; see {options.output}")
    for failure in failures:
        print(f"not finished: {failure}", file=sys.stderr)
    if failures:
        print("start it again to go on; what is finished is kept", file=sys.stderr)
    return 1 if failures else 0


def read_options(arguments):
    parser = parameters.parser(
        {"checkpoint": "embedded", "revision": None, "precision": "fp32", "device": "auto",
         "top_k": 5}, prog="score_batch.py", description="Fill the masks of whole files.")
    parser.add_argument("input", type=Path, help="a file or a folder of .csv and .jsonl files")
    parser.add_argument("output", type=Path, help="folder of predictions/ and errors/")
    parser.add_argument("--workers", type=int, help="processes; one per core if not given")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers: {options.workers} is not a number of at least 1")
    return options


def find_files(source, output):
    """All files of the input, the largest first; hidden ones and hidden folders are left out."""
    if not source.exists():
        raise FileNotFoundError(f"INPUT: there is no {source}; give a file or a folder")
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"OUTPUT: {output} lies in the input folder; give another one")
    os.environ["INPUT_FOLDER"] = str(source if source.is_dir() else source.parent)
    found = [source] if source.is_file() else [
        path for path in source.rglob("*") if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(source).parts)]
    if not found:
        raise FileNotFoundError(f"INPUT: no file in {source}; put .csv or .jsonl files there")
    return sorted(found, key=lambda path: (-path.stat().st_size, path))


def configure(options):
    """Set the environment as Azure does; refuse an output that other settings began."""
    folder = checkpoints.find(options.checkpoint, options.revision)
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    settings = {"checkpoint": options.checkpoint, "weights": weights.hexdigest(),
                "precision": options.precision, "top_k": options.top_k}
    options.output.mkdir(parents=True, exist_ok=True)
    place = options.output / "settings.json"
    if not place.exists():
        report.save_json(place, settings)
    elif (before := json.loads(place.read_text(encoding="utf-8"))) != settings:
        other = ", ".join(name for name in settings if before.get(name) != settings[name])
        raise ValueError(f"OUTPUT: {options.output} was begun with another {other}; give a new "
                         "folder, or the same settings")
    os.environ.update(AZUREML_MODEL_DIR=str(folder), AZUREML_BI_OUTPUT_PATH=str(options.output),
                      PRECISION=options.precision, DEVICE=options.device,
                      TOP_K=str(options.top_k))


def share_cores(workers, device, files):
    """The number of worker processes; what cores are left over become their threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = int(os.environ.get("OMP_NUM_THREADS") or 0) or cores
    if workers is None:  # one process keeps a GPU busy
        workers = cores if checkpoints.pick_device(device) == "cpu" else 1
    workers = min(workers, files)
    os.environ["THREADS"] = str(max(1, cores // workers))
    return workers


def score_all(files, workers):
    """Score files here, or in several processes; return counts of the finished and failures."""
    from tqdm.auto import tqdm

    counts, failures = [], []
    rows, began = 0, time.monotonic()
    with tqdm(total=sum(path.stat().st_size for path in files), unit="B", unit_scale=True,
              mininterval=0.5 if sys.stderr.isatty() else 10) as bar:
        def show(size, more):
            nonlocal rows
            rows += more
            speed = rows / (time.monotonic() - began)
            bar.set_postfix_str(f"{rows:,} rows, {speed:,.0f} rows/s", refresh=False)
            bar.update(size)

        for path, counted in (one_by_one if workers == 1 else side_by_side)(files, workers, show):
            if isinstance(counted, Exception):
                failures.append(f"{path}: {type(counted).__name__}: {counted}")
            elif counted:
                counts.append(counted)
    return counts, failures


def one_by_one(files, workers, show):
    service["report"] = show
    init()
    for path in files:
        try:
            yield path, score_file(path)
        except Exception as error:  # a full disk, a shape that the model refuses: go on
            yield path, error


def side_by_side(files, workers, show):
    context = multiprocessing.get_context("spawn")
    # A pipe takes messages of this size whole, so no lock is left locked by a killed worker.
    reader, writer = context.Pipe(duplex=False)

    def listen():
        try:
            while True:
                show(*reader.recv())
        except EOFError:
            pass

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with ProcessPoolExecutor(workers, context, start_worker, (writer,)) as pool:
        jobs = {pool.submit(score_file, path): path for path in files}
        for job in as_completed(jobs):
            error = job.exception()
            if isinstance(error, BrokenProcessPool):
                error = RuntimeError("a worker died; for want of memory try fewer --workers")
            yield jobs[job], error or job.result()
    writer.close()
    listener.join()


def start_worker(writer):
    """Begin a worker process: it ends with the driver, even where that one is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (wait([driver]), os._exit(1)), daemon=True).start()
    service["report"] = lambda size, rows: writer.send((size, rows))
    init()


if __name__ == "__main__":
    sys.exit(main())
