"""Exports hold the very codes the forward pass saw, and both engines run them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.load import load_model
from bitnet.nn import BitLinear
from bitnet.nn.quantizers import ternary_codes
from bitnet.quant_config import LinearRecipe
from bitnet.quantize.packing import unpack_2bit
from bitnet.train.export import bfloat16_with_codes_of
from bitnet.train.trainer import Trainer


@pytest.fixture
def run(tmp_path, config, tokenizer):
    short = replace(config, schedule=replace(config.schedule, horizon=6))
    trainer = Trainer.create(tmp_path / "run", short, tokenizer)
    trainer.run()
    return trainer


def seen_by_forward(module: BitLinear) -> torch.Tensor:
    """One-hot inputs read the quantised weight out of the layer itself."""
    return module(torch.eye(module.in_features)).detach().T


def test_codes_are_those_of_the_forward_pass_in_every_layer_of_both_files(run):
    for name in ("model-packed", "model-bf16"):
        checkpoint = read_checkpoint(run.directory / name)
        compared = 0
        for layer, module in run.model.named_modules():
            if isinstance(module, BitLinear):
                seen = seen_by_forward(module)
                linear = checkpoint.linear(layer)
                np.testing.assert_array_equal(unpack_2bit(linear.packed), seen.sign().numpy())
                assert linear.scale == pytest.approx(seen.abs().max().item(), rel=2**-8)
                compared += 1
        assert compared == 14


def test_rounding_to_bfloat16_would_flip_codes_that_the_export_keeps():
    torch.manual_seed(0)
    weight = torch.randn(500, 301) * 0.02
    codes, _ = ternary_codes(weight)
    nearest, kept = weight.to(torch.bfloat16), bfloat16_with_codes_of(weight, LinearRecipe())
    assert (ternary_codes(nearest)[0] != codes).any()
    assert torch.equal(ternary_codes(kept)[0], codes)
    steps = (kept.view(torch.int16).int() - nearest.view(torch.int16).int()).abs()
    assert steps.max() <= 2
    assert (steps > 0).float().mean() < 2e-3


def test_exports_run_in_both_engines_and_bring_their_tokenizer(run):
    ids = [0, 5, 6, 7]
    with torch.inference_mode():
        expected = run.model(torch.tensor([ids]))[0].numpy()
    for name in ("model-packed", "model-bf16"):
        for engine in ("torch", "cpu"):
            model = load_model(run.directory / name, engine=engine)
            (logits,) = model.forward([(model.new_cache(8), ids)], all_logits=True)
            # what remains is bfloat16: embedding, scales and, online, the masters
            assert np.abs(logits - expected).max() < 0.15 * expected.std() + 0.05
            assert model.tokenizer.bos_token_id == 0
            assert model.stop_tokens == {0}


def test_an_existing_folder_is_not_overwritten(run, tmp_path):
    run.export(tmp_path / "m", "offline")
    with pytest.raises(InputError, match="exists"):
        run.export(tmp_path / "m", "offline")
