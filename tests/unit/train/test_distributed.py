"""Two gloo processes train what one does, take over each other's checkpoints, fail together; odd sizes."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitnet.formats.checkpoint import read_checkpoint
from bitnet.train.checkpointing import FOLDER, saved_steps
from bitnet.train.config import TrainingConfig
from bitnet.train.trainer import Trainer
from bitnet.train.yaml_file import override

VALUES = {
    "model": {
        "vocab_size": 283,
        "hidden_size": 36,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "data": {"batch_size": 5, "sequence_length": 31, "micro_batch_size": 2},
    "schedule": {"horizon": 20, "learning_rate": {"peak": 1e-2, "warmup": 3}},
    "report": {"log_every": 1, "evaluate_every": 10, "save_every": 10},
}


class Pair:
    """Starts two processes on a folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = [sys.executable, str(Path(__file__).with_name("two_processes.py"))]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._jobs = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def train(self, *arguments: str, fault: tuple[int, int, str] | None = None) -> list[int]:
        """`bitnet train` in both; returns their exit codes."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        job = {
            "arguments": ["train", *arguments],
            "log": str(self.folder),
            "port": port,
            "fault": fault,
        }
        print(json.dumps(job), file=self._jobs.stdin, flush=True)
        codes: list[int] = json.loads(self._jobs.stdout.readline())
        return codes

    def start(self, name: str, *changes: str, **options) -> list[int]:
        """A new run of that name."""
        changes = [part for change in changes for part in ("--set", change)]
        given = (str(self.folder / "run.yaml"), "--tokenizer", str(self.folder / "tokenizer.json"))
        return self.train(*given, "--out", str(self.folder / name), *changes, **options)

    def resume(self, name: str, *arguments: str, **options) -> list[int]:
        """Continue it."""
        return self.train("--out", str(self.folder / name), "--resume", *arguments, **options)

    def said(self, rank: int) -> str:
        """What a process of the last job has printed."""
        return (self.folder / f"{rank}.err").read_text()

    def close(self) -> None:
        """End the program."""
        self._jobs.communicate()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, story_file, tokenizer):
    """Beside the program: run.yaml, tokenizer.json, and `two`, the whole run by two processes."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = {"sources": [{"path": str(story_file), "passes": 40}], "heldout": [str(story_file)]}
    config = TrainingConfig.from_dict(VALUES | {"data": VALUES["data"] | texts})
    config.save(folder / "run.yaml")
    pair = Pair(folder)
    assert pair.start("two") == [0, 0], pair.said(0)
    yield pair
    pair.close()


@pytest.fixture
def config(pair) -> TrainingConfig:
    return TrainingConfig.load(pair.folder / "two" / "training.yaml")


def shortened(config: TrainingConfig) -> TrainingConfig:
    return TrainingConfig.from_dict(override(config.to_dict(), ["schedule.horizon=10"]))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(one: Path, other: Path) -> None:
    """Every number of the last checkpoints and every recorded loss is the same, to the bit."""
    first, second = Trainer.resume(one), Trainer.resume(other)
    assert first.step == second.step
    for (name, weight), same in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(weight, same), name
        for moment in ("exp_avg", "exp_avg_sq"):
            state = (first.optimizer.state[weight], second.optimizer.state[same])
            assert torch.equal(state[0][moment], state[1][moment]), name
    assert losses(one) == losses(other)


def test_two_processes_compute_what_one_does(pair, config, tokenizer):
    Trainer.create(pair.folder / "one", config, tokenizer).run()
    one, two = losses(pair.folder / "one"), losses(pair.folder / "two")
    assert len(one) == len(two) == 20
    assert two[0] == pytest.approx(one[0], abs=1e-6)
    assert two[19] == pytest.approx(one[19], abs=1e-3)
    for name in ("model-packed", "model-bf16"):
        shapes = [
            {key: tensor.shape for key, tensor in read_checkpoint(pair.folder / run / name).tensors.items()}
            for run in ("one", "two")
        ]
        assert shapes[0] == shapes[1]


def test_the_other_number_of_processes_takes_over(pair, config, tokenizer):
    """Each second half starts from the state that the other number of processes left."""
    assert pair.start("two-one", "schedule.horizon=10") == [0, 0]
    Trainer.create(pair.folder / "one-two", shortened(config), tokenizer).run()
    Trainer.resume(pair.folder / "two-one", ["schedule.horizon=20"]).run()
    assert pair.resume("one-two", "--steps", "20") == [0, 0]
    mixed = [losses(pair.folder / name) for name in ("two-one", "one-two")]
    for run in mixed:
        assert len(run) == 20
        assert run[10] < run[0]
    assert mixed[0][10:] == pytest.approx(mixed[1][10:], abs=1e-2)


def test_a_stop_that_one_process_sees_saves_and_ends_both(pair):
    assert pair.start("stopped", fault=(1, 6, "stop")) == [130, 130]
    assert "stopped at step 7 of 20" in pair.said(0)
    assert saved_steps(pair.folder / "stopped") == [7]
    assert pair.resume("stopped") == [0, 0]
    assert_same_end(pair.folder / "stopped", pair.folder / "two")


@pytest.mark.parametrize(("rank", "kind"), [(0, "rename"), (1, "disk")])
def test_a_full_disk_of_one_process_ends_both_by_its_name(pair, rank, kind):
    name = f"full-{rank}-{kind}"
    assert pair.start(name, "schedule.horizon=8", "report.save_every=4", fault=(rank, 7, kind)) == [2, 2]
    for process in range(2):
        assert "step-00000008: cannot be written" in pair.said(process)
        assert "free disk space" in pair.said(process)
    assert [path.name for path in (pair.folder / name / FOLDER).iterdir()] == ["step-00000004"]


def test_what_the_first_process_alone_finds_out_is_told_by_both(pair):
    """An export into a folder that exists: only the first process looks."""
    assert pair.train("--out", str(pair.folder / "two"), "--export", str(pair.folder / "two")) == [2, 2]
    for rank in range(2):
        assert "exists already" in pair.said(rank)
    assert pair.resume("nowhere") == [2, 2]
    assert "no training run to resume" in pair.said(1)


def test_a_killed_process_under_torchrun_ends_the_other_with_a_clear_error(pair):
    """The checkpoint is whole, and what goes on from it is the run that nobody killed."""
    program = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import two_processes\n"
        "if os.environ['RANK'] == '1': two_processes.break_at(13, 'kill')\n"
        "two_processes.run(sys.argv[1:])\n"
    )
    script = pair.folder / "killed.py"
    script.write_text(program)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    given = ["train", str(pair.folder / "run.yaml"), "--tokenizer", str(pair.folder / "tokenizer.json")]
    out = pair.folder / "killed"
    done = subprocess.run(
        [sys.executable, *launcher, *given, "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode != 0
    assert f"exitcode  : {-signal.SIGKILL}" in done.stderr
    assert "error: another process of this run is gone" in done.stderr
    assert saved_steps(out) == [10]
    assert pair.resume("killed") == [0, 0], pair.said(0)
    assert_same_end(out, pair.folder / "two")
