"""Workers of Ray train what one process does, and say in one line what went wrong."""

import json
import os
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
import torch.distributed as dist

from bitnet.cli.main import run
from bitnet.errors import ConfigError, ResourceError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.train import ray_launcher
from bitnet.train.parallel import processes
from bitnet.train.trainer import Trainer

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@needs_ray
def test_two_workers_train_what_one_process_does(tmp_path, config, tokenizer, monkeypatch):
    """From a file with relative paths: a worker starts in another folder than the command."""
    changes = ["schedule.horizon=4", "report.log_every=1", "data.batch_size=5"]
    shutil.copy(config.data.sources[0].path, tmp_path / "story.txt")
    config.save(tmp_path / "run.yaml")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    given = ["train", "run.yaml", "--tokenizer", "tokenizer.json", "--threads", "1"]
    given += [part for change in changes for part in ("--set", change)]
    given += ["--set", "data.sources=[{path: story.txt, passes: 40}]", "--set", "data.heldout=[]"]
    launch = ["--out", "two", "--launcher", "ray", "--workers", "2"]
    # Ray keeps a file in the home folder
    environment = os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "bitnet", *given, *launch],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "two: finished 4 steps" in done.stdout
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run([*given, "--out", "one"])
    assert end.value.code in (0, None)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 4
    assert two[0] == pytest.approx(one[0], abs=1e-6)
    assert two == pytest.approx(one, abs=1e-3)
    assert read_checkpoint(tmp_path / "two" / "model-packed").config == config.model.with_quantization(
        "offline"
    )
    assert not (tmp_path / "two" / ".ray").exists()


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(ray_launcher, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"bitnet-ternary\[ray\]"):
        ray_launcher.launch(print, 2, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("half", [("--launcher", "ray"), ("--workers", "2")])
def test_launcher_and_workers_go_together(half, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(["train", "--out", str(tmp_path / "run"), "--steps", "1", *half])
    assert end.value.code == 2
    assert "--launcher ray --workers 2" in capsys.readouterr().err


def test_what_a_worker_raised_is_the_reason():
    lost, fault = (
        type("ActorDied", (Exception,), {"__module__": "ray.exceptions"}),
        ConfigError("no such key"),
    )
    error = type("Failed", (Exception,), {"worker_failures": {0: lost("gone"), 1: fault}})("all of it")
    assert ray_launcher._reason(error) is fault
    error.worker_failures = {0: lost("worker 3 died\nof something")}
    assert isinstance(ray_launcher._reason(error), ResourceError)
    assert "lost a worker of this run (worker 3 died);" in str(ray_launcher._reason(error))
    error.worker_failures = {0: KeyError("a defect")}
    assert ray_launcher._reason(error) is error


def test_nothing_stays_of_a_run_that_wrote_nothing(tmp_path):
    with ray_launcher._storage(tmp_path / "run") as folder:
        (folder / "log").write_text("of Ray")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with ray_launcher._storage(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_group_of_the_launcher_is_joined_and_stays(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with processes() as parallel:
            assert (parallel.rank, parallel.world) == (0, 3)
            assert parallel.rows(7) == slice(0, 2)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_a_run_in_another_thread_needs_no_signal_handlers(tmp_path, config, tokenizer):
    """Python sets handlers in the main thread only; Ray trains in another one."""
    finished = []
    thread = threading.Thread(
        target=lambda: finished.append(Trainer.create(tmp_path / "run", config, tokenizer).run())
    )
    thread.start()
    thread.join()
    assert finished == [True]
