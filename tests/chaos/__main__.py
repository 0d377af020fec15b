"""The command: python3 -m chaos, with tests/ on the path."""

from __future__ import annotations

import argparse
import signal
import sys

from chaos import run

parser = argparse.ArgumentParser(prog="chaos", description="Faults at random, and a check.")
parser.add_argument("--seconds", type=float, default=60, help="how long faults go on")
parser.add_argument("--seed", type=int, help="make the same plan again")
parser.add_argument("--rate", type=float, default=150, help="requests a second")
parser.add_argument(
    "--calm", action="store_true", help="gentle faults alone, and all must be perfect"
)
options = parser.parse_args()
run.in_own_mounts()
# A signal that ends this process also ends what it started.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
sys.exit(run.main(options.seconds, options.seed, options.rate, calm=options.calm))
