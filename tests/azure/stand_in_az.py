"""A stand-in for `az`: records calls, keeps what exists, fails or is interrupted on request.

STATE names its folder. FAIL_AT and HOW say at which call of `az ml` it fails and how: refused
(nothing happened), lost (it happened, the answer did not come; a deployment goes on for some
time, and its endpoint cannot be deleted meanwhile), interrupt and term (Ctrl-C or a SIGTERM after
it happened).
"""

import json
import os
import re
import signal
import sys
from pathlib import Path

WHERE = {"--resource-group", "--workspace-name", "--subscription"}
OPTIONS = {
    "compute create": {"--file", "--name"}, "compute list": {"--query", "-o"},
    "compute delete": {"--name", "--yes"},
    "job create": {"--file", "--name", "--set"}, "job stream": {"--name"},
    "job show": {"--name", "--query", "-o"}, "job cancel": {"--name"},
    "job list": {"--parent-job-name", "--query", "-o"},
    "job download": {"--name", "--all", "--output-name", "--download-path"},
    "model create": {"--name", "--type", "--path", "--set", "--query", "-o"},
    "online-endpoint create": {"--file", "--name"},
    "online-endpoint delete": {"--name", "--yes"},
    "online-endpoint invoke": {"--name", "--request-file"},
    "online-deployment create": {"--file", "--endpoint-name", "--all-traffic", "--set"},
    "batch-endpoint create": {"--file", "--name"}, "batch-endpoint delete": {"--name", "--yes"},
    "batch-endpoint invoke": {"--name", "--input", "--query", "-o"},
    "batch-endpoint list-jobs": {"--name", "--query", "-o"},
    "batch-deployment create": {"--file", "--endpoint-name", "--set-default", "--set"},
}
FLAGS = {"--yes", "--all", "--all-traffic", "--set-default"}


def parse(arguments):
    """Options of one call; anything the real az would not know ends it."""
    verb, given, rest = " ".join(arguments[:2]), {"--set": []}, list(arguments[2:])
    known = OPTIONS.get(verb)
    if known is None:
        sys.exit(f"az: no command ml {verb}")
    while rest:
        name = rest.pop(0)
        if name not in known | WHERE:
            sys.exit(f"az: ml {verb} has no option {name}")
        value = True if name in FLAGS else rest.pop(0)
        if name == "--set":
            given["--set"].append(value)
        else:
            given[name] = value
    missing = {"--resource-group", "--workspace-name"} - set(given)
    if missing or not given["--resource-group"]:
        sys.exit(f"az: {missing} missing")
    for name in ("--file", "--request-file"):
        if name in given and not Path(given[name]).is_file():
            sys.exit(f"az: no file {given[name]}")
    return verb, given


def act(verb, given, state):
    """Do it, and return what is printed."""
    kind, action = verb.split()
    name = given.get("--name") or given.get("--endpoint-name")
    place = running = state / "exists" / f"{kind} {name}"
    if verb.endswith("endpoint create") and not re.fullmatch("[a-z][a-z0-9-]{1,30}[a-z0-9]", name):
        sys.exit(f"az: {name} is no valid name")
    if verb == "compute create" and not re.fullmatch(  # the pattern of Microsoft's schemas
            r"[a-zA-Z](?![a-zA-Z0-9-]*-\d+$)[a-zA-Z0-9-]{2,23}", name):
        sys.exit(f"az: {name} is no valid name")
    if action == "create" and kind in ("compute", "online-endpoint", "batch-endpoint"):
        place.touch()
    elif verb == "job create":
        running.touch()
    elif verb == "batch-endpoint invoke":
        (state / "exists" / "job batch-job").touch()
    elif verb == "batch-endpoint list-jobs":
        return "batch-job" if (state / "exists" / "job batch-job").exists() else ""
    elif verb == "job stream":  # returns when the job has ended
        running.unlink()
    elif verb == "job cancel":
        if not running.exists():
            sys.exit(f"az: no running job {name}")
        running.unlink()
    elif action == "create" and kind.endswith("-deployment"):
        parent = state / "exists" / f"{kind.replace('deployment', 'endpoint')} {name}"
        if not parent.exists():
            sys.exit(f"az: no endpoint {name}")
    elif action == "delete":
        if not place.exists():
            return ""  # as az does
        if (busy := state / f"busy {place.name}").exists():  # the creation is still under way
            left = int(busy.read_text()) - 1
            busy.write_text(str(left)) if left else busy.unlink()
            sys.exit(f"az: (Conflict) {name} is still being made")
        place.unlink()
    elif verb == "job download":
        folder = Path(given["--download-path"], "named-outputs", "metrics")
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({
            "parameters": {"epochs": 1}, "metrics": {"test_accuracy": 0.93, "rows": 150},
            "seconds": 3.5}, indent=2))
    elif verb == "compute list":
        return "distilbert-cpu" if (state / "exists" / "compute distilbert-cpu").exists() else ""
    return {"job show": os.environ.get("JOB_STATUS", "Completed"), "model create": "7",
            "batch-endpoint invoke": "batch-job", "job list": "scoring-job",
            "online-endpoint invoke": '[[{"token_str": "capital"}]]'}.get(verb, "")


def main():
    state = Path(os.environ["STATE"])
    arguments = sys.argv[1:]
    if arguments[:2] == ["config", "get"]:
        print({"defaults.group": "group", "defaults.workspace": "space"}[arguments[2]])
        return
    if arguments[0] != "ml":
        sys.exit(f"az: unexpected {arguments}")
    verb, given = parse(arguments[1:])
    with (state / "calls.jsonl").open("a") as log:
        log.write(json.dumps([verb, given]) + "\n")
    number = len((state / "calls.jsonl").read_text().splitlines())
    how = os.environ.get("HOW", "") if os.environ.get("FAIL_AT") == str(number) else ""
    if how == "refused":
        sys.exit("az: (InternalServerError)")
    printed = act(verb, given, state)
    if how == "lost":
        if verb.endswith("-deployment create"):  # goes on for minutes after the answer is lost
            parent = verb.split()[0].replace("deployment", "endpoint")
            (state / f"busy {parent} {given['--endpoint-name']}").write_text("5")
        sys.exit("az: connection was closed")
    if how == "term":
        os.kill(os.getppid(), signal.SIGTERM)
    if how == "interrupt":
        os.killpg(0, signal.SIGINT)
    if printed:
        print(printed)


if __name__ == "__main__":
    main()
