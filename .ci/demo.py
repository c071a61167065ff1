"""`make demo`: trains on the embedded default, and ends well only if the true directions were found again."""

import json
import subprocess
import sys
import time
from pathlib import Path

OUTPUTS = Path("outputs/demo")
WANTED = 0.9


def main() -> int:
    began = time.time()
    ended = subprocess.run([sys.executable, "train.py", f"paths.outputs={OUTPUTS}"], check=False)
    seconds = time.time() - began
    if ended.returncode:
        return ended.returncode
    written = [path for path in OUTPUTS.rglob("scores.json") if path.stat().st_mtime >= began]
    if len(written) != 1:
        print(f"the run left {len(written)} scores.json under {OUTPUTS}, not one", file=sys.stderr)
        return 1
    recovery = json.loads(written[0].read_text(encoding="utf-8"))["scores"]["sae"]["recovery"]
    print(f"run       {written[0].parent}\nscores    {written[0]}\nseconds   {seconds:.0f}")
    print(f"recovery  {recovery:.3f} of the true directions; wanted: {WANTED}")
    return 0 if recovery >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
