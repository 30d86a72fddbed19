"""CPU time of the command where it trains nothing, against the interpreter alone and against importing torch.

`fedloom --help`, and `fedloom validate` of a file with mistakes; neither may import torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import machine, ratio, rotate

WRONG = "name: wrong\nseed: zero\nmodle: {path: nothing}\nfederation: {rounds: 0}\n"
INPUT_IS_WRONG = 2
WATCHED = """
import sys
from fedloom.cli.app import main
sys.argv[1:] = {arguments!r}
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def child_seconds(command: list[str], expected: int) -> float:
    """CPU time of a process, with all that it starts; it must end with the expected code."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != expected:
        raise SystemExit(f"{command} ended with {child.returncode}, not {expected}")
    return usage.ru_utime + usage.ru_stime


def imports_torch(arguments: list[str]) -> bool:
    """Whether the command imports torch on its way."""
    code = WATCHED.format(arguments=arguments)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    return said.splitlines()[-1] == "True"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--smallest", action="store_true", help="one repetition: a check, not a measurement")
    options = parser.parse_args()
    command = str(Path(sys.executable).with_name("fedloom"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wrong.yaml"
        file.write_text(WRONG)
        verbs = {"fedloom --help": (["--help"], 0), "fedloom validate": (["validate", str(file)], INPUT_IS_WRONG)}
        runs = {name: ([command, *arguments], code) for name, (arguments, code) in verbs.items()}
        runs["python"] = ([sys.executable, "-c", "pass"], 0)
        runs["import torch"] = ([sys.executable, "-c", "import torch"], 0)
        methods = {name: lambda run=run: child_seconds(*run) for name, run in runs.items()}
        seconds = rotate(methods, 1 if options.smallest else options.repetitions)
        heavy = {name: imports_torch(arguments) for name, (arguments, _) in verbs.items()}
    print(machine())
    for name in verbs:
        against = "  ".join(
            f"{ratio(seconds[name], seconds[other]):>20} x {other}" for other in ("python", "import torch")
        )
        print(f"  {name:17} {against}   imports torch: {'yes' if heavy[name] else 'no'}")
    if any(heavy.values()):
        raise SystemExit("torch is imported where nothing needs it")


if __name__ == "__main__":
    main()
