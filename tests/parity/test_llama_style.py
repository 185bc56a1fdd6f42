"""Checkpoints as Falcon-E and HF1BitLLM publish them: no sub-norms, and `bitlinear` scales that divide.

transformers runs the same folder; our engines must give its logits.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.load import load_model
from bitnet.quant_config import QuantConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

# transformers' own BitNet module compiles functions when it is imported, which makes PyTorch warn of itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

IDS = [3, 17, 90, 4]
SHAPE = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=172,  # a multiple of 4 and of nothing else
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    hidden_act="silu",
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=(1,),
)


def publish(folder, seed, norms, **keys):
    """A random model in their form: what they leave out of config.json is left out."""
    quantization = QuantConfig(norms=norms, norm_eps=1e-5)
    synthesize(replace(SHAPE, quantization=quantization), folder / "ours", seed=seed)
    tensors = dict(read_checkpoint(folder / "ours").tensors)
    for name, tensor in tensors.items():
        if name.endswith("weight_scale"):
            tensors[name] = type(tensor).of(np.float32(1) / tensor.float32(), "BF16")
    divided = replace(SHAPE, quantization=replace(quantization, linear_class="bitlinear"))
    write_checkpoint(folder / "theirs", divided, tensors)
    path = folder / "theirs" / "config.json"
    values = json.loads(path.read_text())
    values |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "use_cache": True}
    values["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": None, **keys}
    path.write_text(json.dumps(values))
    return folder / "theirs"


def logits_of_transformers(folder, dtype):
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert type(model).__name__ == "LlamaForCausalLM"
        model = model.to(dtype)
        for module in model.modules():
            if type(module).__name__ == "BitLinear":
                module.dtype = dtype  # of its products, which would stay bfloat16
        return model(torch.tensor([IDS])).logits[0].numpy()


@pytest.mark.parametrize(
    ("seed", "norms", "keys"),
    [(0, "pre", {}), (0, "pre-linear", {"use_rms_norm": True, "rms_norm_eps": 1e-5})],
    ids=["no norm in projections", "use_rms_norm"],
)
def test_logits(tmp_path, seed, norms, keys):
    folder = publish(tmp_path, seed, norms, **keys)
    assert read_checkpoint(folder).config.quantization.norms == norms
    wanted = logits_of_transformers(folder, torch.float32)
    # The seed keeps every activation away from a rounding tie: more precision must not change an integer.
    np.testing.assert_allclose(logits_of_transformers(folder, torch.float64), wanted, atol=2e-5)
    for engine, options in (("torch", {}), ("cpu", {"kv_dtype": "float32"})):
        model = load_model(folder, engine=engine, **options)
        (found,) = model.forward([(model.new_cache(len(IDS)), IDS)], all_logits=True)
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=engine)
