"""``python -m benchmarks cpu`` or ``gpu``; with ``--help``, its options."""

import argparse
from importlib import import_module

from .frameworks import FRAMEWORKS
from .record import write
from .shapes import SHAPES

parser = argparse.ArgumentParser(prog="python -m benchmarks")
parser.add_argument("device", choices=["cpu", "gpu"])
parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, help="by default all that are installed")
parser.add_argument("--sets", nargs="+", choices=SHAPES, help="by default those with bars")
parser.add_argument("--rounds", type=int, default=9, help="at least; short calls get more")
parser.add_argument("--no-record", action="store_true", help="write no file; a run of a part never does")
options = parser.parse_args()

device = import_module(f"{__package__}.{options.device}")
record = device.run(options.only or device.installed(), options.sets or device.SETS, options.rounds)
print(device.show(record))
if not (options.only or options.sets or options.no_record):
    print(f"\nrecorded in benchmarks/results/{write(record).name}")
