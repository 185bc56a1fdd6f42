"""A program that runs `bitnet train` in two processes as often as asked; PyTorch is imported once.

A line on stdin is a job: {"arguments": […], "log": FOLDER, "port": N, "fault": null or [rank, step, kind]}.
What torchrun would set is set here. The answer is a line with both exit codes; FOLDER gets 0.err and 1.err.
"""

import json
import os
import resource
import signal
import sys

import torch

import bitnet.train.trainer as trainer
from bitnet.cli.main import run
from bitnet.train import checkpointing


def start(job: dict, rank: int) -> int:
    """The id of a forked process; nothing has started a thread that a fork would lose."""
    if child := os.fork():
        return child
    code = 1
    try:
        log = os.open(os.path.join(job["log"], f"{rank}.err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
        if job["fault"] and job["fault"][0] == rank:
            break_at(*job["fault"][1:])
        run(job["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def break_at(step: int, kind: str) -> None:
    """Have this process fail at a step: killed, asked to stop, without room on its disk, or when renaming."""
    call, count = trainer.TrainingStep.__call__, []

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    def counted(self, *arguments):
        count.append(0)
        if len(count) == step:
            match kind:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    signal.raise_signal(signal.SIGTERM)
                case "disk":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
                case "rename":
                    checkpointing.os = type("os", (), {"replace": refuse, "fsync": os.fsync})
        return call(self, *arguments)

    trainer.TrainingStep.__call__ = counted


torch.set_num_threads(1)
torch.manual_seed(0)  # imports PyTorch's tracer, as the optimiser would in every child
if __name__ == "__main__":
    for line in sys.stdin:
        children = [start(json.loads(line), rank) for rank in range(2)]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]), flush=True)
