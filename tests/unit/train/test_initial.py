import math
from dataclasses import replace

import pytest
import torch

from bitnet.config import ModelConfig
from bitnet.nn import Transformer
from bitnet.quant_config import VARIANTS
from bitnet.train.initial import quieten_branches

SHAPE = ModelConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
)


def new_model(name):
    torch.manual_seed(0)
    quantization = VARIANTS[name].stored_as("online")
    return Transformer(replace(SHAPE, quantization=quantization))


def branch_norms(model):
    """Those before o_proj and down_proj: sub-norms, or the norms inside the two."""
    inside = ("o_proj.rms_norm", "o_proj.layer_norm", "down_proj.rms_norm", "down_proj.layer_norm")
    ends = tuple(f"{name}.weight" for name in ("sub_norm", *inside))
    return {name for name, _ in model.named_parameters() if name.endswith(ends)}


@pytest.mark.parametrize("name", ["b1.58", "tips", "w1a8", "v2"])
def test_norms_before_the_stream_become_small_and_no_others(name):
    before, model = dict(new_model(name).named_parameters()), new_model(name)
    quieten_branches(model, None)
    chosen = branch_norms(model)
    assert len(chosen) == 2 * SHAPE.num_hidden_layers
    for key, parameter in model.named_parameters():
        if key in chosen:
            assert torch.equal(parameter, torch.full_like(parameter, 1 / math.sqrt(8 * parameter.numel())))
        else:
            assert torch.equal(parameter, before[key])


def test_a_model_without_such_norms_is_left_alone():
    before, model = dict(new_model("pre").named_parameters()), new_model("pre")
    quieten_branches(model, None)
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_the_embedding_survives_the_layers():
    """All halves of all layers together add less than the embedding; with weights of 1 they drown it."""
    ids = torch.arange(32)[None]
    shares = {}
    for weight in (None, 1.0):
        model = new_model("b1.58")
        quieten_branches(model, weight)
        stream = []
        model.model.norm.register_forward_pre_hook(lambda _, inputs, kept=stream: kept.append(inputs[0]))
        with torch.no_grad():
            model(ids)
            embedded = model.model.embed_tokens(ids)
        shares[weight] = ((stream[0] - embedded).std() / embedded.std()).item()
    assert shares[None] < 1
    assert shares[1.0] > 5
