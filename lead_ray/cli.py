"""`lead-ray COMMAND ...`: the same as `python -m lead_ray.COMMAND ...`."""

import importlib
import sys
from difflib import get_close_matches
from importlib.metadata import version

COMMANDS = {
    "quickstart": "synthetic faces -> both stages -> errors -> one page, in a few minutes",
    "prepare": "raw folder -> shards",
    "pretrain": "stage 1: instance-level encoder",
    "dense": "stage 2: dense compact map",
    "annotate": "a page on which you click the landmarks of a few images",
    "fit": "annotated images -> a landmark model",
    "predict": "a landmark model's points in your images",
    "export": "a landmark model as ONNX or torch.export program",
    "convert": "landmarks from one tool's file to another's",
    "evaluate": "regression and matching errors",
    "plot": "pictures of runs and of what was measured",
    "bench": "speed, beside plain references and other libraries",
}


def main() -> None:
    """Entry point of `lead-ray`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print("usage: lead-ray COMMAND ...    (lead-ray COMMAND --help for its options)\n")
        print("\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items()))
        return
    if command == "--version":
        print(version("lead_ray"))
        return
    if command not in COMMANDS:
        meant = get_close_matches(command, COMMANDS, n=1)
        like = f"did you mean {meant[0]}?" if meant else f"commands: {', '.join(COMMANDS)}"
        sys.exit(f"lead-ray: no command {command!r}; {like}")
    try:  # imported only now: `lead-ray --help` must not wait for torch
        module = importlib.import_module(f"lead_ray.{command}")
    except KeyboardInterrupt:  # within these seconds
        sys.exit(130)
    module.main(sys.argv[2:])
