"""A run learns, stops, goes on to the bit, and keeps its record."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from bitnet.errors import ConfigError, DivergedError, FormatError, InputError, ResourceError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.train import sinks
from bitnet.train.checkpointing import saved_steps
from bitnet.train.config import CONFIG_FILE, TrainingConfig
from bitnet.train.parallel import Parallel
from bitnet.train.record import METRICS, read_rows
from bitnet.train.trainer import Trainer
from bitnet.train.yaml_file import override


def changed(config: TrainingConfig, *assignments: str) -> TrainingConfig:
    return TrainingConfig.from_dict(override(config.to_dict(), assignments))


def assert_same_state(one: Trainer, other: Trainer) -> None:
    for (name, first), second in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second), name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(one.optimizer.state[first][moment], other.optimizer.state[second][moment]), (
                name
            )


def losses(folder) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in read_rows(folder / "metrics.csv")]


def test_a_repetitive_text_is_learned(tmp_path, config, tokenizer):
    longer = changed(config, "schedule.horizon=120", "report.log_every=20", "report.evaluate_every=60")
    run = Trainer.create(tmp_path, longer, tokenizer)
    assert run.run()
    rows = read_rows(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [20, 40, 60, 80, 100, 120]
    assert float(rows[0]["loss"]) > 2.5
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    bits = [float(row["heldout:story"]) for row in rows if row["heldout:story"]]
    assert len(bits) == 2
    assert bits[1] < bits[0] < 8
    packed = [float(row["packed:story"]) for row in rows if row["packed:story"]]
    assert packed == pytest.approx(bits, rel=5e-3)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_stopped_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, config, tokenizer, interrupt):
    whole = Trainer.create(tmp_path / "whole", config, tokenizer)
    assert whole.run()
    broken = Trainer.create(tmp_path / "broken", config, tokenizer)
    interrupt(6, lambda: signal.raise_signal(signal.SIGTERM))
    assert not broken.run()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = Trainer.resume(tmp_path / "broken")
    assert resumed.step == 7  # the signal is seen by all processes in the step after it
    assert resumed.run()
    assert_same_state(whole, resumed)
    assert [row["heldout:story"] for row in read_rows(tmp_path / "whole" / "metrics.csv")] == [
        row["heldout:story"] for row in read_rows(tmp_path / "broken" / "metrics.csv")
    ]


def test_a_lost_process_goes_on_from_the_last_saved_state(tmp_path, config, tokenizer, interrupt):
    whole = Trainer.create(tmp_path / "whole", config, tokenizer)
    whole.run()
    lost = Trainer.create(tmp_path / "lost", config, tokenizer)

    def die():
        raise MemoryError

    interrupt(9, die)
    with pytest.raises(MemoryError):
        lost.run()
    resumed = Trainer.resume(tmp_path / "lost")
    assert resumed.step == 5
    resumed.run()
    assert_same_state(whole, resumed)
    assert [row["step"] for row in read_rows(tmp_path / "lost" / "metrics.csv")] == [
        "2",
        "4",
        "6",
        "8",
        "10",
        "12",
    ]


def test_killing_the_process_loses_nothing_that_was_saved(tmp_path, config, tokenizer):
    """SIGKILL leaves no time to tidy up; what follows is the run that was never killed."""
    whole = Trainer.create(tmp_path / "whole", changed(config, "report.log_every=1"), tokenizer)
    whole.run()
    killed = tmp_path / "killed"
    Trainer.create(killed, changed(config, "report.log_every=1"), tokenizer)
    code = (
        "import os, signal, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from bitnet.train.step import TrainingStep\n"
        "from bitnet.train.trainer import Trainer\n"
        "call, count = TrainingStep.__call__, []\n"
        "def counted(self, *a):\n"
        "    count.append(0)\n"
        "    if len(count) == 9: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return call(self, *a)\n"
        "TrainingStep.__call__ = counted\n"
        "Trainer.resume(Path(sys.argv[1])).run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(killed)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = Trainer.resume(killed)
    assert resumed.step == 5
    assert resumed.run()
    assert_same_state(whole, resumed)
    assert losses(killed) == losses(tmp_path / "whole")


def test_micro_batches_change_nothing_but_rounding(tmp_path, config, tokenizer):
    runs = []
    for size in (4, 3, 1):
        name = tmp_path / str(size)
        run = Trainer.create(
            name, changed(config, f"data.micro_batch_size={size}", "report.log_every=1"), tokenizer
        )
        run.run()
        runs.append([float(loss) for _, loss in losses(name)])
    assert runs[1][0] == pytest.approx(runs[0][0], abs=1e-6)
    assert runs[2] == pytest.approx(runs[0], abs=1e-2)


def test_recomputed_activations_change_no_bit(tmp_path, config, tokenizer):
    plain = Trainer.create(tmp_path / "a", config, tokenizer)
    frugal = Trainer.create(
        tmp_path / "b", changed(config, "compute.activation_checkpointing=true"), tokenizer
    )
    plain.run()
    frugal.run()
    assert_same_state(plain, frugal)


def test_bad_steps_are_skipped_and_three_of_them_end_the_run(
    tmp_path, config, tokenizer, monkeypatch, capsys
):
    run = Trainer.create(tmp_path, changed(config, "report.save_every=2"), tokenizer)
    loss, calls = run.model.loss, []

    def poisoned(ids, targets):
        calls.append(0)
        bad = len(calls) in (2, 6, 7, 8)
        return loss(ids, targets) * (float("nan") if bad else 1.0)

    monkeypatch.setattr(run.model, "loss", poisoned)
    with pytest.raises(DivergedError, match=r"3 bad steps in a row up to step 8.*resume"):
        run.run()
    assert run.guard.skipped == 4
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    (saved,) = tmp_path.glob("bad-batch-step-*.npy")
    assert np.load(saved).shape == (4, 32)
    assert "step 2 skipped: loss nan" in capsys.readouterr().err
    assert saved_steps(tmp_path)[-1] == 6
    assert Trainer.resume(tmp_path).guard.skipped == 2


def test_the_horizon_can_be_redrawn(tmp_path, config, tokenizer, capsys):
    Trainer.create(tmp_path, config, tokenizer).run()
    longer = Trainer.resume(tmp_path, ["schedule.horizon=14", "data.batch_size=2", "data.sequence_length=64"])
    assert longer.run()
    assert longer.step == 14
    assert TrainingConfig.load(tmp_path / CONFIG_FILE).data.sequence_length == 64
    assert read_checkpoint(tmp_path / "model-packed").config == longer.config.model.with_quantization(
        "offline"
    )
    with pytest.raises(InputError, match="128 tokens"):
        Trainer.resume(tmp_path, ["data.batch_size=3"])


def test_a_changed_schedule_is_noticed(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    assert Trainer.resume(tmp_path).notices == []
    for change in ("weight_decay.peak=0.2", "horizon=13", "learning_rate.warmup=2"):
        folder = shutil.copytree(tmp_path, tmp_path.with_name(change))
        assert "schedule differs" in Trainer.resume(folder, [f"schedule.{change}"]).notices[0]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer)
    with pytest.raises(InputError, match="--resume"):
        Trainer.create(tmp_path, config, tokenizer)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, config, tokenizer):
    with pytest.raises(InputError, match=r"model\.vocab_size=280"):
        Trainer.create(tmp_path, changed(config, "model.vocab_size=279"), tokenizer)


def test_a_run_continues_from_masters_and_not_from_codes(tmp_path, config, tokenizer):
    Trainer.create(tmp_path / "first", config, tokenizer).run()
    masters = read_checkpoint(tmp_path / "first" / "model-bf16")
    second = Trainer.create(tmp_path / "second", config, tokenizer, initial=masters)
    for name, parameter in second.model.named_parameters():
        assert torch.equal(parameter, torch.from_numpy(masters.tensors[name].float32())), name
    assert second.run()
    assert float(losses(tmp_path / "second")[0][1]) < float(losses(tmp_path / "first")[0][1])
    packed = read_checkpoint(tmp_path / "first" / "model-packed")
    with pytest.raises(InputError, match="packed codes"):
        Trainer.create(tmp_path / "third", config, tokenizer, initial=packed)
    wide = changed(config, "model.vocab_size=284")
    with pytest.raises(InputError, match=r"model\.embed_tokens\.weight is \(284, 32\)"):
        Trainer.create(tmp_path / "fourth", wide, tokenizer, initial=masters)


def test_a_run_without_a_checkpoint_begins_again_with_its_masters(tmp_path, config, tokenizer):
    """What a process that dies before the first save leaves behind."""
    Trainer.create(tmp_path / "first", config, tokenizer).run()
    folder = tmp_path / "first" / "model-bf16"
    masters = read_checkpoint(folder)
    Trainer.create(tmp_path / "second", changed(config, f"initial={folder}"), tokenizer, initial=masters)
    again = Trainer.resume(tmp_path / "second")
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, torch.from_numpy(masters.tensors[name].float32())), name


def test_changed_constants_of_the_optimiser_hold_from_the_resume_on(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    resumed = Trainer.resume(
        tmp_path, ["optimizer.betas=[0.5, 0.6]", "optimizer.eps=1e-3", "schedule.horizon=14"]
    )
    assert [(group["betas"], group["eps"]) for group in resumed.optimizer.param_groups] == [
        ((0.5, 0.6), 1e-3)
    ] * 2
    assert resumed.run()


def test_a_second_process_in_the_folder_is_refused_and_changes_nothing(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    before = (tmp_path / CONFIG_FILE).read_bytes(), (tmp_path / METRICS).read_bytes()
    program = (
        "import sys, pathlib\n"
        "from bitnet.train.lock import sole_writer\n"
        "from bitnet.train.parallel import Parallel\n"
        "with sole_writer(pathlib.Path(sys.argv[1]), Parallel()):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match="another process trains here"):
            Trainer.resume(tmp_path, ["schedule.horizon=14"])
        with pytest.raises(InputError, match="another process trains here"):
            Trainer.resume(tmp_path).run()
        Trainer.resume(tmp_path).export(tmp_path / "exported", "offline")  # which only reads the run
        assert before == ((tmp_path / CONFIG_FILE).read_bytes(), (tmp_path / METRICS).read_bytes())
        first.kill()
    assert Trainer.resume(tmp_path, ["schedule.horizon=14"]).run()


def test_a_batch_smaller_than_the_processes_is_refused(tmp_path, config, tokenizer):
    with pytest.raises(ConfigError, match="5 processes"):
        Trainer(tmp_path, config, tokenizer, Parallel(0, 5))


def test_data_beyond_its_bounds_is_refused_before_the_folder_is_a_run(tmp_path, config, tokenizer):
    (tmp_path / "short.txt").write_text("Too short.")
    (tmp_path / "empty.txt").write_text("")
    for name, error in (("short", InputError), ("empty", FormatError), ("missing", FormatError)):
        source = f"data.sources=[{{path: {tmp_path / name}.txt}}]"
        with pytest.raises(error, match=rf"{name}\.txt"):
            Trainer.create(tmp_path / "run", changed(config, source), tokenizer)
    with pytest.raises(FormatError, match=r"typo\.txt"):
        Trainer.create(tmp_path / "run", changed(config, "data.heldout=[typo.txt]"), tokenizer)
    assert Trainer.create(tmp_path / "run", config, tokenizer).step == 0


@pytest.mark.parametrize("key", ["data.sources=[{path: gone.txt}]", "data.heldout=[gone.txt]"])
def test_data_that_vanished_is_refused_by_name_and_not_kept(tmp_path, config, tokenizer, key):
    Trainer.create(tmp_path, config, tokenizer)
    with pytest.raises(FormatError, match=r"gone\.txt"):
        Trainer.resume(tmp_path, [key])
    assert Trainer.resume(tmp_path).run()


def test_a_package_that_a_report_needs_is_missed_before_the_folder_is_a_run(
    tmp_path, config, tokenizer, monkeypatch
):
    monkeypatch.setattr(sinks, "find_spec", lambda package: None)
    with pytest.raises(ResourceError, match=r"bitnet-ternary\[tensorboard\]"):
        Trainer.create(tmp_path, changed(config, "report.tensorboard=true"), tokenizer)
    assert Trainer.create(tmp_path, config, tokenizer).step == 0


def test_a_horizon_behind_the_run_is_refused_and_not_kept(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    with pytest.raises(InputError, match="12 steps are done"):
        Trainer.resume(tmp_path, ["schedule.horizon=8"])
    assert Trainer.resume(tmp_path).run()


def test_the_old_export_stays_until_the_new_one_is_whole(tmp_path, config, tokenizer, monkeypatch):
    run = Trainer.create(tmp_path, config, tokenizer)
    run.run()
    before = (tmp_path / "model-packed" / "model.safetensors").read_bytes()

    def full(*arguments):
        raise ResourceError("no room")

    monkeypatch.setattr("bitnet.train.export.write_checkpoint", full)
    with pytest.raises(ResourceError):
        Trainer.resume(tmp_path, ["schedule.horizon=14"]).run()
    assert (tmp_path / "model-packed" / "model.safetensors").read_bytes() == before


def test_a_plain_run_says_that_it_exports_nothing(tmp_path, config, tokenizer, capsys):
    run = Trainer.create(tmp_path, changed(config, "schedule.quantized=false"), tokenizer)
    assert run.run()
    assert "nothing is exported" in capsys.readouterr().err
    assert not (tmp_path / "model-packed").exists()
    with pytest.raises(InputError, match=r"schedule\.quantized is false"):
        run.export(tmp_path / "packed", "offline")


def test_a_slow_quantiser_and_bfloat16_resume_to_the_bit(tmp_path, config, tokenizer, interrupt):
    slow = changed(config, "schedule.quantizer_warmup=9", "compute.precision=bfloat16")
    whole = Trainer.create(tmp_path / "whole", slow, tokenizer)
    whole.run()
    Trainer.create(tmp_path / "broken", slow, tokenizer)
    interrupt(5, lambda: signal.raise_signal(signal.SIGINT))
    assert not Trainer.resume(tmp_path / "broken").run()
    resumed = Trainer.resume(tmp_path / "broken")
    assert resumed.run()
    assert_same_state(whole, resumed)
    assert all(parameter.dtype == torch.float32 for parameter in resumed.model.parameters())


def test_ids_with_holes_need_room_up_to_the_highest(tmp_path, config, tokenizer):
    values = json.loads(tokenizer.to_str())
    values["model"]["vocab"]["zzz"] = 300
    holed = Tokenizer.from_str(json.dumps(values))
    with pytest.raises(InputError, match=r"model\.vocab_size=301"):
        Trainer.create(tmp_path, config, holed)


def test_masters_with_tensors_the_model_lacks_are_refused(tmp_path, config, tokenizer):
    untied = changed(config, "model.tie_word_embeddings=false", "schedule.horizon=1")
    Trainer.create(tmp_path / "untied", untied, tokenizer).run()
    masters = read_checkpoint(tmp_path / "untied" / "model-bf16")
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        Trainer.create(tmp_path / "tied", config, tokenizer, initial=masters)
