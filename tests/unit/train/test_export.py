"""Exports hold the very codes the forward pass saw, and both engines run them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.load import load_model
from bitnet.nn import BitLinear
from bitnet.quantize.packing import unpack_2bit
from bitnet.train.export import export
from bitnet.train.trainer import Trainer


@pytest.fixture
def run(tmp_path, config, tokenizer):
    trainer = Trainer.create(tmp_path / "run", replace(config, steps=6), tokenizer)
    trainer.run()
    return trainer


def test_packed_codes_are_those_of_the_forward_pass(run, tmp_path):
    export(run.model, run.tokenizer, tmp_path / "packed", "offline")
    checkpoint = read_checkpoint(tmp_path / "packed")
    compared = 0
    for name, module in run.model.named_modules():
        if isinstance(module, BitLinear):
            # one-hot inputs read the quantised weight out of the layer itself
            seen = module(torch.eye(module.in_features)).detach().T
            linear = checkpoint.linear(name)
            np.testing.assert_array_equal(unpack_2bit(linear.packed), seen.sign().numpy())
            assert linear.scale == pytest.approx(seen.abs().max().item(), rel=2**-8)
            compared += 1
    assert compared == 14


def test_exports_run_in_both_engines_and_bring_their_tokenizer(run, tmp_path):
    ids = [0, 5, 6, 7]
    with torch.inference_mode():
        expected = run.model(torch.tensor([ids]))[0].numpy()
    for mode in ("offline", "online"):
        export(run.model, run.tokenizer, tmp_path / mode, mode)
        for engine in ("torch", "cpu"):
            model = load_model(tmp_path / mode, engine=engine)
            (logits,) = model.forward([(model.new_cache(8), ids)], all_logits=True)
            # what remains is bfloat16: embedding, scales and, online, the masters
            assert np.abs(logits - expected).max() < 0.15 * expected.std() + 0.05
            assert model.tokenizer.bos_token_id == 0
            assert model.stop_tokens == {0}


def test_an_existing_folder_is_not_overwritten(run, tmp_path):
    export(run.model, run.tokenizer, tmp_path / "m", "offline")
    with pytest.raises(InputError, match="exists"):
        export(run.model, run.tokenizer, tmp_path / "m", "offline")
