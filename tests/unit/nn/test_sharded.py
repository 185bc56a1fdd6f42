"""FSDP2 on two gloo processes: a sharded BitLinear quantises the whole matrix, odd sizes included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")


def test_sharded_layers_give_the_codes_and_the_loss_of_whole_ones(tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("sharded.py"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            [*program, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    for job, (output, errors) in [(job, job.communicate()) for job in jobs]:
        assert job.returncode == 0, errors
        results = json.loads(output)
        assert len(results) == 3
        for result in results:
            for whole, sharded in result["losses"]:
                assert sharded == pytest.approx(whole, abs=1e-6)
            assert len(result["same"]) == 2 * 14  # codes and scales of seven projections in two layers
            assert all(result["same"])
            assert result["checks"] == [True, True, True]  # sharded, gradients, state dict keys
