"""Two gloo processes train what one does, and take over each other's checkpoints; sizes are odd."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.train.config import TrainingConfig, override
from bitnet.train.trainer import Trainer

SIZES = [
    "model.vocab_size=283",
    "model.hidden_size=36",
    "model.num_attention_heads=3",
    "model.num_key_value_heads=1",
    "model.intermediate_size=52",
    "data.batch_size=5",
    "data.sequence_length=31",
    "data.micro_batch_size=2",
    "schedule.horizon=20",
    "report.log_every=1",
    "report.evaluate_every=10",
    "report.save_every=10",
]


def torchrun(*arguments: str, expected: int = 0) -> subprocess.CompletedProcess[str]:
    """`bitnet train` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "bitnet", "train", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert (done.returncode != 0) == bool(expected), done.stdout + done.stderr
    return done


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, story_file, tokenizer):
    """The same run by one process and by two, and each one's first half carried on by the other."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {
        "model": {
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "data": {"sources": [{"path": str(story_file), "passes": 40}], "heldout": [str(story_file)]},
        "schedule": {"learning_rate": {"peak": 1e-2, "warmup": 3}},
    }
    config = TrainingConfig.from_dict(override(values, SIZES))
    half = TrainingConfig.from_dict(override(config.to_dict(), ["schedule.horizon=10"]))
    config.save(folder / "whole.yaml")
    half.save(folder / "half.yaml")
    given = ("--tokenizer", str(folder / "tokenizer.json"))
    torchrun(str(folder / "whole.yaml"), "--out", str(folder / "two"), *given)
    torchrun(str(folder / "half.yaml"), "--out", str(folder / "two-one"), *given)
    for name in ("one", "one-two"):
        Trainer.create(folder / name, config if name == "one" else half, tokenizer).run()
    Trainer.resume(folder / "two-one", ["schedule.horizon=20"]).run()
    torchrun("--resume", "--out", str(folder / "one-two"), "--set", "schedule.horizon=20")
    return folder


def test_two_processes_compute_what_one_does(runs):
    one, two = losses(runs / "one"), losses(runs / "two")
    assert len(one) == len(two) == 20
    assert two[0] == pytest.approx(one[0], abs=1e-6)
    assert two[19] == pytest.approx(one[19], abs=1e-3)


@pytest.mark.parametrize("name", ["two-one", "one-two"])
def test_the_other_number_of_processes_takes_over(runs, name):
    """Its second half is the one a run of the whole horizon would have had from that state."""
    mixed = losses(runs / name)
    assert len(mixed) == 20
    assert mixed[10] < mixed[0]
    other = "one-two" if name == "two-one" else "two-one"
    assert mixed[10:] == pytest.approx(losses(runs / other)[10:], abs=1e-2)


def test_exports_of_two_processes_are_whole(runs):
    from bitnet.formats.checkpoint import read_checkpoint

    for name in ("model-packed", "model-bf16"):
        shapes = [
            {key: tensor.shape for key, tensor in read_checkpoint(runs / run / name).tensors.items()}
            for run in ("one", "two")
        ]
        assert shapes[0] == shapes[1]


def test_an_error_ends_all_processes_with_one_message(runs):
    done = torchrun("--resume", "--out", str(runs / "nowhere"), expected=1)
    assert "no training run to resume" in done.stderr
