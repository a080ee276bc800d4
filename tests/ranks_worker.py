"""One of several processes that train together, for test_distributed.py: python ranks_worker.py CASES.json FOLDER, with torchrun's environment.

Each case is trained one after the other; every process leaves FOLDER/CASE/rank-R.pt, its whole state at the end, and how it ended.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from gancompress import distributed as ranks
from gancompress import loop
from gancompress.console import Silent
from gancompress.errors import GanCompressError
from gancompress.planning import make_plan
from gancompress.request import Request
from gancompress.running import run_plan


def train(case, folder):
    """``stop_at``, ``spoil_at``: steps at which the last process is sent SIGTERM, or has a loss that is not finite."""
    last, trainers, train_step, update = ranks.rank() == ranks.world() - 1, [], loop.Trainer.train_step, loop.Trainer._update
    spoilt = []

    def step(self, batches):
        trainers[:] = [self]
        if last and self.step == case.get("stop_at"):
            os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, batches)

    def spoiling(self, optimizer, terms_of, *args, **kwargs):
        if last and self.step == case.get("spoil_at") and not spoilt:
            spoilt.append(self.step)
            return update(self, optimizer, lambda part: {k: v * float("nan") for k, v in terms_of(part).items()}, *args, **kwargs)
        return update(self, optimizer, terms_of, *args, **kwargs)

    loop.Trainer.train_step, loop.Trainer._update = step, spoiling
    out, code = folder / ("run" if ranks.rank() == 0 else f"run-of-{ranks.rank()}"), 0
    try:
        run_plan(ranks.agreed(lambda: make_plan(Request(*case["args"], **case["options"], out=out, device="cpu"))), Silent())
    except GanCompressError as error:
        code = error.exit_code
    finally:
        loop.Trainer.train_step, loop.Trainer._update = train_step, update
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"code": code, "state": trainers[0].state()}, folder / f"rank-{ranks.rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with ranks.joined(torch.device("cpu")):
        for name, each in json.loads(Path(sys.argv[1]).read_text()).items():
            train(each, Path(sys.argv[2]) / name)
