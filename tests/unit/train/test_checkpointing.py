"""States on disk: the last ones stay, damage is refused, nothing half-written or broken counts."""

import contextlib
import json
import os
import random
import resource
import subprocess
import sys

import pytest
import torch

from bitnet.errors import DivergedError, FormatError, InputError
from bitnet.train.checkpointing import FOLDER, saved_steps
from bitnet.train.config import CONFIG_FILE, TrainingConfig
from bitnet.train.lock import LOCK_FILE
from bitnet.train.trainer import Trainer
from bitnet.train.yaml_file import override


def changed(config: TrainingConfig, *assignments: str) -> TrainingConfig:
    return TrainingConfig.from_dict(override(config.to_dict(), assignments))


def test_only_the_last_checkpoints_stay(tmp_path, config, tokenizer):
    run = Trainer.create(tmp_path, changed(config, "report.save_every=2", "report.keep=3"), tokenizer)
    run.run()
    assert saved_steps(tmp_path) == [8, 10, 12]
    assert [path.name for path in (tmp_path / FOLDER).iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, config, tokenizer):
    """A file-size limit stands in for the disk: the write fails in its middle in the same way."""
    run = Trainer.create(tmp_path, changed(config, "schedule.horizon=5"), tokenizer)
    run.run()
    code = (
        "import resource, sys\n"
        "from bitnet.cli.main import run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "run(['train', '--out', sys.argv[1], '--resume', '--steps', '7', '--threads', '1'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr
    assert "free disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert saved_steps(tmp_path) == [5]
    assert not list((tmp_path / FOLDER).glob(".*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    resumed = Trainer.resume(tmp_path)
    assert resumed.step == 5
    assert resumed.run()


def test_what_killed_saves_left_behind_goes(tmp_path, config, tokenizer):
    for name in (".step-00000003.tmp", ".step-00000005.tmp"):
        (tmp_path / FOLDER / name).mkdir(parents=True)
        (tmp_path / FOLDER / name / "__0_0.distcp").write_bytes(b"half")
    (tmp_path / ".model-packed.tmp").mkdir()
    Trainer.create(tmp_path, config, tokenizer).run()
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["step-00000010", "step-00000012"]
    assert [path.name for path in tmp_path.glob(".*")] == [LOCK_FILE]


def test_weights_that_are_not_finite_are_not_saved(tmp_path, config, tokenizer, interrupt):
    """The guard sees them only in the step after, and by then the last good checkpoint may be gone."""
    run = Trainer.create(tmp_path, changed(config, "report.save_every=2", "report.keep=1"), tokenizer)

    def explode():
        with torch.no_grad():
            run.model.model.norm.weight[3] = float("inf")

    interrupt(4, explode)
    with pytest.raises(DivergedError, match=r"not finite.*step 4.*resume from step 2"):
        run.run()
    assert saved_steps(tmp_path) == [2]


def test_a_new_run_does_not_take_over_old_checkpoints(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(InputError, match="new folder"):
        Trainer.create(tmp_path, config, tokenizer)


@pytest.mark.parametrize(
    "damage", ["no configuration", "truncated", "overwritten", "no facts", "other model"]
)
def test_damaged_runs_are_refused_by_name(tmp_path, config, tokenizer, damage):
    Trainer.create(tmp_path, changed(config, "report.save_every=6"), tokenizer).run()
    newest = tmp_path / FOLDER / "step-00000012"
    data = max(newest.glob("*.distcp"), key=os.path.getsize)
    if damage == "no configuration":
        (tmp_path / CONFIG_FILE).unlink()
    elif damage == "truncated":
        data.write_bytes(data.read_bytes()[:-5000])
    elif damage == "overwritten":
        (newest / ".metadata").write_bytes(b"nonsense")
    elif damage == "no facts":
        (newest / "run.json").unlink()
    else:
        changed(config, "model.hidden_size=64", "model.head_dim=16").save(tmp_path / CONFIG_FILE)
    with pytest.raises(FormatError, match=r"training\.yaml|step-00000012"):
        Trainer.resume(tmp_path)


def test_every_changed_bit_of_a_checkpoint_is_refused(tmp_path, config, tokenizer):
    """Weights and moments among them, whose change PyTorch does not notice."""
    Trainer.create(tmp_path, changed(config, "schedule.horizon=1"), tokenizer).run()
    chance = random.Random(0)
    folder = tmp_path / FOLDER / "step-00000001"
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        for _ in range(20):
            bad = bytearray(good)
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
            path.write_bytes(bad)
            # run.json holds also what only informs, and white space
            harmless = contextlib.suppress(FormatError) if path.name == "run.json" else None
            with harmless or pytest.raises(FormatError, match="step-00000001: is damaged"):
                Trainer.resume(tmp_path)
        path.write_bytes(good)
    assert Trainer.resume(tmp_path).step == 1


@pytest.mark.parametrize("hashes", [None, {}, [], "0", {"../run.json": "0"}, {"missing": "0"}])
def test_a_checkpoint_without_its_hashes_is_refused(tmp_path, config, tokenizer, hashes):
    Trainer.create(tmp_path, changed(config, "report.save_every=6"), tokenizer).run()
    file = tmp_path / FOLDER / "step-00000012" / "run.json"
    facts = json.loads(file.read_text()) | {"sha256": hashes}
    file.write_text(json.dumps(facts))
    with pytest.raises(FormatError, match=r"step-00000012: is damaged.*; remove it to go on from step 6"):
        Trainer.resume(tmp_path)
