"""Every variant learns, is exported with the codes of its forward pass, and runs as it was trained."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.nn import BitLinear, bitlinear
from bitnet.nn.quantizers import weight_codes
from bitnet.quant_config import VARIANTS, Inputs, LinearRecipe
from bitnet.torch_model import TorchModel
from bitnet.train.config import TrainingConfig
from bitnet.train.export import bfloat16_with_codes_of
from bitnet.train.heldout import open_texts
from bitnet.train.masters import model_values
from bitnet.train.record import read_rows
from bitnet.train.trainer import Trainer
from bitnet.train.yaml_file import override

LINE = {name: [f"model.variant={name}"] for name in VARIANTS} | {
    "a scale a row": ["model.quantization_config.scales=row"],
    "w1a8 in groups": ["model.variant=w1a8", "model.quantization_config={scales: group, groups: 2}"],
    "int4 in groups": ["model.quantization_config={scales: group, groups: 2, inputs: {o: int4, down: int4}}"],
}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("bitnet.train.reporting.plot_run", lambda directory: None)


def quiet(values, *settings):
    """One layer, short sequences; no evaluation and no checkpoints on the way."""
    silent = ["model.num_hidden_layers=1", "data.sequence_length=16", "data.heldout=[]"]
    silent += ["report={log_every: 10, save_every: 1000, codes_every: 50}"]
    return TrainingConfig.from_dict(override(values, [*silent, *settings]))


def codes_of_forward(model, ids, monkeypatch):
    """The codes of every layer, as a forward pass computes them."""
    seen, layers = {}, {}

    def noted(weight, recipe):
        codes, scales = weight_codes(weight, recipe)
        seen[layers[id(weight)]] = codes.to(torch.int8).numpy()
        return codes, scales

    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            layers[id(module.weight)] = name
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(bitlinear, "weight_codes", noted)
        logits = model(ids)
    assert len(seen) == 7
    return seen, logits[0].numpy()


@pytest.mark.parametrize("settings", LINE.values(), ids=LINE.keys())
def test_a_variant_learns_and_its_exports_compute_what_it_computed(
    tmp_path, values, tokenizer, settings, monkeypatch
):
    config = quiet(values, *settings, "schedule.horizon=30")
    run = Trainer.create(tmp_path, config, tokenizer)
    assert run.run()
    losses = [float(row["loss"]) for row in read_rows(tmp_path / "metrics.csv")]
    assert losses[-1] < 0.75 * losses[0]
    # a real text: random ids leave the model nothing to be sure of
    (text,) = open_texts(values["data"]["heldout"], tokenizer)
    ids = text.ids[:33]
    codes, logits = codes_of_forward(run.model, torch.from_numpy(ids)[None], monkeypatch)
    expected = cross_entropy(logits[:-1], ids[1:])
    for name in ("model-packed", "model-bf16"):
        checkpoint = read_checkpoint(tmp_path / name)
        assert checkpoint.config.quantization.inputs == config.model.quantization.inputs
        for layer, seen in codes.items():
            np.testing.assert_array_equal(checkpoint.linear(layer).codes(), seen, err_msg=layer)
        model = TorchModel.from_checkpoint(checkpoint, None)
        (found,) = model.forward([(model.new_cache(64), ids)], all_logits=True)
        # what remains is bfloat16: embedding, norms, scales; codes of few bits flip by large steps
        assert cross_entropy(found[:-1], ids[1:]) == pytest.approx(expected, rel=0.05)


def cross_entropy(logits, targets):
    logits = logits.astype(np.float64)
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -chances[np.arange(len(targets)), targets].mean()


def test_a_run_resumes_to_the_bit_across_the_switch_to_few_bits(tmp_path, values, tokenizer, interrupt):
    config = quiet(values, "model.variant=v2", "schedule.low_bit_from=0.5", "schedule.quantizer_warmup=4")
    whole = Trainer.create(tmp_path / "whole", config, tokenizer)
    seen = []
    whole.model.register_forward_pre_hook(lambda *_: seen.append(inputs_in_force(whole.model)))
    assert whole.run()
    assert seen == [{"int8"}] * 6 + [{"int4"}] * 6
    Trainer.create(tmp_path / "broken", config, tokenizer)
    for steps, reached in ((4, 5), (2, 8)):  # before the switch and behind it; a signal is seen a step later
        interrupt(steps, lambda: signal.raise_signal(signal.SIGTERM))
        stopped = Trainer.resume(tmp_path / "broken")
        assert not stopped.run()
        assert stopped.step == reached
    resumed = Trainer.resume(tmp_path / "broken")
    assert resumed.notices == []
    assert resumed.run()
    for (name, first), second in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second), name
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(
                whole.optimizer.state[first][moment], resumed.optimizer.state[second][moment]
            ), name


def test_a_resume_may_change_quantisers_but_no_tensors(tmp_path, values, tokenizer):
    assert Trainer.create(
        tmp_path, quiet(values, "schedule.horizon=2", "model.variant=a4.8"), tokenizer
    ).run()
    other = ["model.quantization_config=null", "schedule.horizon=4"]
    with pytest.raises(InputError, match="other tensors"):
        Trainer.resume(tmp_path, [*other, "model.variant=tips"])
    resumed = Trainer.resume(tmp_path, [*other, "model.variant=v2"])
    assert any("the quantisers differ" in notice for notice in resumed.notices)
    assert resumed.model.model.layers[0].mlp.down_proj.recipe.rotate


def inputs_in_force(model):
    return {module.inputs for module in model.modules() if isinstance(module, BitLinear)}


def test_exports_and_evaluations_before_the_switch_have_the_inputs_of_then(
    tmp_path, values, tokenizer, interrupt, monkeypatch
):
    asked = []

    class Stub:
        def __init__(self, tensors, config):
            asked.append(config.quantization.inputs)

    monkeypatch.setattr("bitnet.train.reporting.packed_model", Stub)
    monkeypatch.setattr("bitnet.train.reporting.packed_bits_per_byte", lambda *_: 0.0)
    settings = ["model.variant=a4.8", "schedule.low_bit_from=0.5", "report.evaluate_every=4"]
    config = TrainingConfig.from_dict(override(values, settings))
    run = Trainer.create(tmp_path / "run", config, tokenizer)
    interrupt(5, lambda: signal.raise_signal(signal.SIGTERM))
    assert not run.run()
    run.export(tmp_path / "early", "offline")
    resumed = Trainer.resume(tmp_path / "run")
    resumed.run()
    resumed.export(tmp_path / "late", "offline")
    own = VARIANTS["a4.8"].inputs
    assert asked == [Inputs(), own, own]
    for name, inputs in (("early", Inputs()), ("late", own)):
        assert read_checkpoint(tmp_path / name).config.quantization.inputs == inputs


def test_inputs_that_are_not_quantised_and_plain_layers_know_no_switch(tmp_path, values, tokenizer):
    for number, setting in enumerate(("schedule.activation_bits=16", "schedule.quantized=false")):
        run = Trainer.create(
            tmp_path / str(number),
            quiet(values, "model.variant=a4.8", "schedule.horizon=2", setting),
            tokenizer,
        )
        run.run()
        assert inputs_in_force(run.model) == {None}


def test_a_run_takes_other_quantisers_and_a_checkpoints_shape(tmp_path, values, tokenizer):
    Trainer.create(tmp_path / "first", quiet(values, "schedule.horizon=2"), tokenizer).run()
    masters = read_checkpoint(tmp_path / "first" / "model-bf16")
    for given, inputs, kv_bits in (
        ({"variant": "a4.8"}, VARIANTS["a4.8"].inputs, 16),
        ({"quantization_config": {"kv_bits": 4, "inputs": {"o": "fp4"}}}, Inputs(o="fp4"), 4),
        (None, Inputs(), 16),
    ):
        config = quiet(values | {"model": model_values(given, masters)}, "schedule.horizon=1")
        shape = replace(config.model, quantization=masters.config.quantization)
        assert shape == masters.config
        assert config.model.quantization.inputs == inputs
        assert config.model.quantization.kv_bits == kv_bits
        assert Trainer.create(tmp_path / str(inputs), config, tokenizer, initial=masters).run()
    assert model_values({"preset": "stories"}, masters) == {"preset": "stories"}
    linear = quiet(values | {"model": model_values({"variant": "tips"}, masters)})
    with pytest.raises(InputError, match="no place"):
        Trainer.create(tmp_path / "linear", linear, tokenizer, initial=masters)


@pytest.mark.parametrize("weights", ["ternary", "binary"])
def test_rounding_to_bfloat16_keeps_codes_on_both_sides_of_every_threshold(weights):
    torch.manual_seed(0)
    for shape, centre in [((64, 96), 0.0), ((64, 96), 1e-3), ((8, 12), 1.0), ((2, 4), -3.0)]:
        weight = torch.randn(shape) * 0.02 + centre
        recipes = [LinearRecipe(weights), LinearRecipe(weights, row_groups=shape[0])]
        for recipe in (*recipes, LinearRecipe(weights, column_groups=2)):
            codes, _ = weight_codes(weight, recipe)
            kept = bfloat16_with_codes_of(weight, recipe)
            assert torch.equal(weight_codes(kept, recipe)[0], codes)
            nearest = weight.to(torch.bfloat16)
            assert (kept != nearest).float().mean() <= 0.25  # of eight values, two


def test_binary_codes_beside_the_mean_would_flip():
    torch.manual_seed(0)
    weight, recipe = torch.randn(500, 301) * 0.02 + 0.01, LinearRecipe("binary")
    codes, _ = weight_codes(weight, recipe)
    assert (weight_codes(weight.to(torch.bfloat16), recipe)[0] != codes).any()
    assert torch.equal(weight_codes(bfloat16_with_codes_of(weight, recipe), recipe)[0], codes)
