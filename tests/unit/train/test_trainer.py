"""A run learns, stops, goes on to the bit, and keeps its record."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitnet.errors import ConfigError, FormatError, InputError
from bitnet.train import trainer as trainer_module
from bitnet.train.checkpointing import FILE
from bitnet.train.config import TrainingConfig
from bitnet.train.record import read_rows
from bitnet.train.trainer import Trainer


def assert_same_state(one: Trainer, other: Trainer) -> None:
    for (name, first), second in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second), name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(one.optimizer.state[first][moment], other.optimizer.state[second][moment]), (
                name
            )


def test_a_repetitive_text_is_learned(tmp_path, config, tokenizer):
    run = Trainer.create(tmp_path, replace(config, steps=120, log_every=20, evaluate_every=60), tokenizer)
    assert run.run()
    rows = read_rows(tmp_path / "loss.csv")
    assert [int(row["step"]) for row in rows] == [20, 40, 60, 80, 100, 120]
    assert float(rows[0]["loss"]) > 3.5
    assert float(rows[-1]["loss"]) < 0.5 * float(rows[0]["loss"])
    bits = [float(row["heldout:story"]) for row in rows if row["heldout:story"]]
    assert len(bits) == 2
    assert bits[1] < bits[0] < 8
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path, config, tokenizer, monkeypatch):
    whole = Trainer.create(tmp_path / "whole", config, tokenizer)
    assert whole.run()

    broken = Trainer.create(tmp_path / "broken", config, tokenizer)
    update = Trainer._update

    def interrupted(self, *arguments):
        result = update(self, *arguments)
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "_update", interrupted)
    assert not broken.run()
    monkeypatch.undo()
    handler = signal.getsignal(signal.SIGTERM)
    assert handler == signal.SIG_DFL

    resumed = Trainer.resume(tmp_path / "broken")
    assert resumed.step == 7
    assert resumed.run()
    assert_same_state(whole, resumed)
    columns = ("step", "tokens", "learning_rate", "weight_decay", "heldout:story")
    rows = [read_rows(tmp_path / name / "loss.csv") for name in ("whole", "broken")]
    assert [[row[c] for c in columns] for row in rows[0]] == [[row[c] for c in columns] for row in rows[1]]


def test_a_lost_process_goes_on_from_the_last_saved_state(tmp_path, config, tokenizer, monkeypatch):
    whole = Trainer.create(tmp_path / "whole", config, tokenizer)
    whole.run()
    lost = Trainer.create(tmp_path / "lost", config, tokenizer)
    update = Trainer._update

    def dies(self, *arguments):
        if self.step == 9:
            raise MemoryError
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_update", dies)
    with pytest.raises(MemoryError):
        lost.run()
    monkeypatch.undo()
    resumed = Trainer.resume(tmp_path / "lost")
    assert resumed.step == 5
    resumed.run()
    assert_same_state(whole, resumed)
    assert [row["step"] for row in read_rows(tmp_path / "lost" / "loss.csv")] == [
        "2",
        "4",
        "6",
        "8",
        "10",
        "12",
    ]


def test_the_horizon_can_be_redrawn(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer).run()
    longer = Trainer.resume(tmp_path, {"steps": 14, "batch_size": 2, "sequence_length": 64})
    assert longer.run()
    assert longer.step == 14
    assert TrainingConfig.load(tmp_path / trainer_module.CONFIG_FILE) == replace(
        config, steps=14, batch_size=2, sequence_length=64
    )
    with pytest.raises(InputError, match="128 tokens"):
        Trainer.resume(tmp_path, {"batch_size": 3})


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, config, tokenizer):
    Trainer.create(tmp_path, config, tokenizer)
    with pytest.raises(InputError, match="--resume"):
        Trainer.create(tmp_path, config, tokenizer)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path, config, tokenizer):
    small = replace(config, model=replace(config.model, vocab_size=279))
    with pytest.raises(InputError, match="280"):
        Trainer.create(tmp_path, small, tokenizer)


@pytest.mark.parametrize("damage", ["missing", "truncated", "other model"])
def test_damaged_states_are_refused_by_name(tmp_path, config, tokenizer, damage):
    Trainer.create(tmp_path, replace(config, steps=1), tokenizer).run()
    state = tmp_path / FILE
    if damage == "missing":
        (tmp_path / "training.json").unlink()
    elif damage == "truncated":
        state.write_bytes(state.read_bytes()[:-100])
    else:
        replace(config, model=replace(config.model, hidden_size=64)).save(tmp_path / "training.json")
    with pytest.raises(FormatError, match=r"training\.json|state\.safetensors"):
        Trainer.resume(tmp_path)


def test_configurations_survive_their_file(tmp_path, config):
    config.save(tmp_path / "c.json")
    assert TrainingConfig.load(tmp_path / "c.json") == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("batch_size", -1),
        ("learning_rate", 0),
        ("switch", 2),
        ("sequence_length", 65),
        ("data", ()),
    ],
)
def test_impossible_values_are_refused(config, key, value):
    with pytest.raises(ConfigError):
        replace(config, **{key: value})


def test_bits_per_byte_of_a_uniform_model(config, tokenizer, story_file):
    """A model that knows nothing spends log2(vocabulary) bits a token."""
    from bitnet.nn import Transformer
    from bitnet.train.heldout import HeldOut, bits_per_byte

    model = Transformer(config.model.with_quantization("online"))
    model.model.embed_tokens.weight.data.zero_()
    text = HeldOut.read(story_file, tokenizer)
    for length in (7, 32):
        bits = bits_per_byte(model, text, length)
        assert bits == pytest.approx((len(text.ids) - 1) * np.log2(280) / text.size, rel=1e-5)
