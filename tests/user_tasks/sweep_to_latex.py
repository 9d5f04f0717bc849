"""Two learning rates and two seeds, in one table for a paper."""

import subprocess
import sys
from pathlib import Path

grid = "--grid=config.client.optimizer.learning_rate=0.02,0.1"
sweep = [sys.executable, "-m", "fedjax8", "sweep", "--out=runs", grid, "--seeds=0,1", "--config.rounds=5"]
subprocess.run([*sweep, "--latex=table.tex", "--csv=table.csv"], check=True)
table, rows = Path("table.tex").read_text(), Path("table.csv").read_text().splitlines()
assert len(rows) == 3 and all(there in table for there in ("0.02", "0.1", r"\begin{tabular}"))
