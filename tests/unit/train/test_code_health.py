"""Shares of zeros and flips against a count one by one."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from bitnet.nn import Transformer
from bitnet.quantize.weights import ternarize
from bitnet.train.code_health import CodeHealth
from bitnet.train.config import TrainingConfig
from bitnet.train.record import CODES, read_rows
from bitnet.train.step import TrainingStep
from bitnet.train.trainer import Trainer


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    odd = dataclasses.replace(
        config.model, hidden_size=20, head_dim=6, intermediate_size=28, num_key_value_heads=4
    )
    return Transformer(odd)


def codes_by_layer(model):
    return {
        name.removesuffix(".weight"): ternarize(weight.detach().numpy())[0].ravel().tolist()
        for name, weight in model.named_parameters()
        if "_proj" in name
    }


def test_shares_equal_a_count_of_single_codes(model):
    health, before = CodeHealth(model), codes_by_layer(model)
    first = health.measure()
    assert list(first) == list(before)
    assert len(first) == 14
    for name, codes in before.items():
        assert first[name][0] == sum(code == 0 for code in codes) / len(codes)
        assert math.isnan(first[name][1])
    with torch.no_grad():
        for number, weight in enumerate(p for n, p in model.named_parameters() if "_proj" in n):
            weight += 0.01 * number * torch.randn(weight.shape)
    now, second = codes_by_layer(model), health.measure()
    for name, codes in now.items():
        changed = sum(old != new for old, new in zip(before[name], codes, strict=True))
        assert second[name] == (codes.count(0) / len(codes), changed / len(codes))
    rates = [flips for _, flips in second.values()]
    assert rates[0] == 0
    assert rates[-1] > 0.1


def test_flips_are_counted_from_the_last_measure_and_not_from_the_first(model):
    health = CodeHealth(model)
    health.measure()
    with torch.no_grad():
        for weight in model.parameters():
            weight.neg_()
    zeros, flips = zip(*health.measure().values(), strict=True)
    assert np.array(flips) == pytest.approx(1 - np.array(zeros))
    assert {flips for _, flips in health.measure().values()} == {0.0}


def test_a_resumed_run_records_the_same_flips(tmp_path, values, tokenizer, monkeypatch):
    monkeypatch.setattr("bitnet.train.reporting.plot_run", lambda directory: None)
    values["report"] |= {"codes_every": 3, "save_every": 3}
    values["data"]["heldout"] = []
    config = TrainingConfig.from_dict(values)
    Trainer.create(tmp_path / "whole", config, tokenizer).run()
    Trainer.create(tmp_path / "killed", config, tokenizer)
    call, count = TrainingStep.__call__, []

    def dying(self, *arguments):
        count.append(0)
        if len(count) == 8:
            raise KeyboardInterrupt
        return call(self, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        Trainer.resume(tmp_path / "killed").run()
    resumed = Trainer.resume(tmp_path / "killed")
    assert resumed.step == 6
    resumed.run()
    rows = read_rows(tmp_path / "whole" / CODES)
    assert read_rows(tmp_path / "killed" / CODES) == rows
    assert len(rows) == 4 * 14
    assert all(0 <= float(row["flip_rate"]) < 1 for row in rows)
    assert any(float(row["flip_rate"]) > 0 for row in rows)
