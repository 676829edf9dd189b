"""Claims the folders that it is told on its input, each for so many times; it holds one that it claims once."""

import sys
from pathlib import Path

from multitrainer_cli.errors import UserError
from multitrainer_cli.ranks.exchange import Ranks
from multitrainer_cli.runs.claim import claim_folder

print("ready", flush=True)
for line in sys.stdin:
    out, times = line.split()
    for _ in range(int(times)):
        try:
            wanted = None if out == "default" else Path(out)
            with claim_folder(wanted, Path("runs/finetune"), False, False, Ranks()) as folder:
                print("claimed", folder, flush=True)
                if times == "1":
                    sys.stdin.readline()
        except UserError as error:
            print(error, flush=True)
    print("done", flush=True)
