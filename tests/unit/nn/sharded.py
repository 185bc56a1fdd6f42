"""One of two processes: the same models whole and sharded. Arguments: rank, a file to meet at.

Prints for b1.58 and for other quantisers both losses, and whether every layer's codes in the sharded
forward pass are those of the whole matrix.
"""

import json
import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from bitnet.config import ModelConfig
from bitnet.nn import BitLinear, Transformer
from bitnet.nn.bitlinear import set_quantization
from bitnet.nn.quantizers import weight_codes
from bitnet.quant_config import Inputs, QuantConfig

ODD = ModelConfig(
    vocab_size=257,
    hidden_size=60,
    intermediate_size=84,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=16,
).with_quantization("online")


OTHER = QuantConfig(
    scales="row", inputs=Inputs.all("int4"), norms="linear", norm_kind="layer", rotation="hadamard"
)
BINARY = QuantConfig(weights="binary", scales="group", groups=2, norms="linear")


def build(config):
    """The same random weights at every call."""
    torch.manual_seed(0)
    return Transformer(config)


def codes(module):
    """Of the weight as the module holds it just then."""
    return weight_codes(module.weight, module.recipe)


def main(rank, meeting):
    """Compare every model."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    wide = replace(ODD, hidden_size=64, intermediate_size=88, head_dim=24)
    configs = [ODD, replace(ODD, quantization=OTHER.stored_as("online"))]
    configs.append(replace(wide, quantization=BINARY.stored_as("online")))
    print(json.dumps([compare(config) for config in configs]))
    dist.destroy_process_group()


def compare(config):
    """Compare at full and at half strength, and take a gradient through the shards."""
    whole, sharded = build(config), build(config)
    expected = {n: codes(m) for n, m in whole.named_modules() if isinstance(m, BitLinear)}
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    shards = all(p.to_local().numel() < p.numel() for p in sharded.parameters())
    ids = torch.randint(0, ODD.vocab_size, (2, 9))
    rows = []
    for strength in (1.0, 0.5):
        set_quantization(whole, strength, 8)
        set_quantization(sharded, strength, 8)
        losses = [model.loss(ids[:, :-1], ids[:, 1:]) for model in (whole, sharded)]
        losses[1].backward()
        rows.append([loss.item() for loss in losses])
    gradients = all(parameter.grad is not None for parameter in sharded.parameters())
    found = {}
    for name, module in sharded.named_modules():
        if isinstance(module, BitLinear):
            module.register_forward_pre_hook(
                lambda module, _, name=name: found.__setitem__(name, codes(module))
            )
    sharded.loss(ids[:, :-1], ids[:, 1:])
    same = [torch.equal(a, b) for name in expected for a, b in zip(found[name], expected[name], strict=True)]
    state = sharded.state_dict().keys() == whole.state_dict().keys()
    return {"losses": rows, "same": same, "checks": [shards, gradients, state]}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
