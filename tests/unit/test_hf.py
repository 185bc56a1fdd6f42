"""The plug-in inside transformers: its models against recorded logits, plain transformers and our engine."""

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bitnet.config import preset
from bitnet.convert import convert
from bitnet.errors import FormatError, ResourceError, UnsupportedError
from bitnet.formats.synthesize import synthesize
from bitnet.load import load_model
from bitnet.quant_config import variant

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import bitnet.hf  # noqa: E402
from bitnet.hf import KernelHead, KernelLinear, KernelQuantizer  # noqa: E402
from bitnet.hf.quantizer import _is_cpu  # noqa: E402

# transformers' own BitNet module compiles functions when it is imported, which makes PyTorch warn of itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

LAYERS, PROJECTIONS = 3, 7  # of the golden model
TOLERANCE = 1e-4  # golden/README.md


@pytest.fixture(autouse=True)
def plug_in():
    yield bitnet.hf.enable()
    bitnet.hf.disable()


@pytest.fixture
def safe_ids(golden_forward):
    return torch.from_numpy(golden_forward["ids_safe"]).long()


def load(directory, dtype=torch.float32, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, **options)
    kernels = [module for module in model.modules() if isinstance(module, KernelLinear)]
    assert len(kernels) == LAYERS * PROJECTIONS
    return model


def plain_logits(directory, ids):
    """What transformers alone makes of a folder in float32.

    It loads packed files in bfloat16 only, which rounds what is stored in float32: scales that are no
    bfloat16 numbers. They are put back, so that everything else can be held to the tolerance.
    """
    bitnet.hf.disable()
    # eager: compiling takes longer than everything else here
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        assert not any(isinstance(module, KernelLinear) for module in model.modules())
        model = model.to(torch.float32)
        stored = load_file(directory / "model.safetensors")
        scales = {name: tensor for name, tensor in stored.items() if name.endswith("_scale")}
        assert not model.load_state_dict(scales, strict=False).unexpected_keys
        found = model(ids).logits
    bitnet.hf.enable()
    return found


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def edited(golden, tmp_path, quantization, change):
    """The packed golden model with another quantization_config and changed tensors."""
    config = json.loads((golden / "packed_offline/config.json").read_text())
    config["quantization_config"] |= quantization
    tensors = load_file(golden / "packed_offline/model.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


@pytest.mark.parametrize("kind", ["packed_offline", "bf16_online"])
@pytest.mark.parametrize("options", [{}, {"device_map": "cpu"}, {"device_map": "auto"}])
def test_logits_are_the_recorded_ones(golden, golden_forward, safe_ids, kind, options):
    model = load(golden / kind, **options)
    expected = golden_forward[f"safe_logits_{kind}_fp32"]
    np.testing.assert_allclose(logits(model, safe_ids).numpy(), expected, atol=TOLERANCE, rtol=0)


def test_a_bfloat16_model_is_close_and_can_be_widened(golden, golden_forward, safe_ids):
    model = load(golden / "packed_offline", torch.bfloat16)
    assert logits(model, safe_ids).dtype is torch.bfloat16
    expected = golden_forward["safe_logits_packed_offline_fp32"]
    close = logits(model, safe_ids).float().numpy()
    assert np.corrcoef(close.ravel(), expected.ravel())[0, 1] > 0.99
    widened = logits(model.to(torch.float32), safe_ids).numpy()
    np.testing.assert_allclose(widened, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["packed_offline", "bf16_online"])
def test_generate_with_its_cache_gives_the_recorded_tokens(golden, golden_forward, kind):
    model = load(golden / kind)
    recorded = golden_forward[f"greedy_{kind}"].reshape(-1)
    prompt = torch.from_numpy(recorded[:8].astype(np.int64))[None]
    found = model.generate(prompt, max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert found[0].tolist() == recorded.tolist()


def test_packed_weights_stay_the_bytes_of_the_file(golden):
    model = load(golden / "packed_offline", torch.bfloat16)
    stored = load_file(golden / "packed_offline/model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert set(state) - set(stored) == {"lm_head.weight"}  # tied
    assert type(model.lm_head) is KernelHead
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_scales_that_divide(golden, tmp_path, safe_ids):
    def invert(tensors):
        for name, tensor in tensors.items():
            if name.endswith("weight_scale"):
                tensors[name] = (1 / tensor.float()).bfloat16()

    folder = edited(golden, tmp_path, {"linear_class": "bitlinear"}, invert)
    model = load_model(folder, kv_dtype="float32")
    (expected,) = model.forward([(model.new_cache(8), safe_ids[0].tolist())], all_logits=True)
    np.testing.assert_allclose(logits(load(folder), safe_ids)[0], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_norms_inside_linear_layers(golden, tmp_path, safe_ids, linear_class):
    def add_norms(tensors):
        random = torch.Generator().manual_seed(0)
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            norm = torch.rand(tensors[name].shape[1], generator=random) + 0.5
            tensors[name.replace(".weight", ".rms_norm.weight")] = norm.bfloat16()

    quantization = {"linear_class": linear_class, "use_rms_norm": True, "rms_norm_eps": 1e-6}
    folder = edited(golden, tmp_path, quantization, add_norms)
    model = load(folder, torch.bfloat16).to(torch.float32)
    layer = model.model.layers[0].mlp.down_proj
    x = torch.randn(3, layer.in_features)
    with torch.no_grad():
        normed = layer.rms_norm(x)
        assert not torch.allclose(normed, x)
        assert torch.equal(layer(x), layer.product(normed))
    if linear_class == "autobitlinear":  # the other one stays bfloat16 in transformers
        found = logits(model, safe_ids)
        assert (found - plain_logits(folder, safe_ids)).abs().max() < 0.3  # an int8 tie may have flipped


def test_named_modules_are_not_converted(golden, tmp_path):
    skipped = "model.layers.1.mlp.down_proj"

    def widen(tensors):
        del tensors[f"{skipped}.weight_scale"]
        tensors[f"{skipped}.weight"] = torch.ones(256, 512, dtype=torch.bfloat16)

    folder = edited(golden, tmp_path, {"modules_to_not_convert": ["lm_head", skipped]}, widen)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert type(model.get_submodule(skipped)) is torch.nn.Linear
    assert type(model.model.layers[0].mlp.down_proj) is KernelLinear
    assert sum(isinstance(module, KernelLinear) for module in model.modules()) == LAYERS * PROJECTIONS - 1


@pytest.mark.parametrize("kind", ["packed_offline", "bf16_online"])
def test_what_is_saved_loads_everywhere(golden, golden_forward, safe_ids, tmp_path, kind):
    model = load(golden / kind, torch.bfloat16)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["quantization_mode"] == "offline"
    expected = golden_forward[f"safe_logits_{kind}_fp32"]
    ours = logits(load(tmp_path), safe_ids)
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(plain_logits(tmp_path, safe_ids), expected, atol=TOLERANCE, rtol=0)
    engine = load_model(tmp_path, kv_dtype="float32")
    (found,) = engine.forward([(engine.new_cache(8), safe_ids[0].tolist())], all_logits=True)
    np.testing.assert_allclose(found, expected[0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("kind", "target"), [("packed_offline", "bf16"), ("bf16_online", "packed"), ("packed_offline", "packed")]
)
def test_plain_transformers_runs_what_we_export(golden, tmp_path, safe_ids, kind, target):
    convert(golden / kind, tmp_path / "out", target)
    engine = load_model(tmp_path / "out", kv_dtype="float32")
    (expected,) = engine.forward([(engine.new_cache(8), safe_ids[0].tolist())], all_logits=True)
    found = plain_logits(tmp_path / "out", safe_ids)[0]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_float32_scales_survive_in_a_bfloat16_model(golden, tmp_path):
    """As save_pretrained and bitnet.convert write them."""
    model = load(golden / "bf16_online", torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved", torch.bfloat16)
    scales = [{n: b for n, b in m.named_buffers() if n.endswith("weight_scale")} for m in (model, again)]
    assert scales[0].keys() == scales[1].keys()
    for name, scale in scales[0].items():
        assert scale.dtype == torch.float32
        assert torch.equal(scale, scales[1][name]), name


@pytest.mark.parametrize("kind", ["packed_offline", "bf16_online"])
def test_inference_mode_from_the_file_on(golden, safe_ids, kind):
    expected = load(golden / kind).generate(safe_ids[:1], max_new_tokens=3, do_sample=False)
    with torch.inference_mode():
        found = load(golden / kind).generate(safe_ids[:1], max_new_tokens=3, do_sample=False)
    assert torch.equal(found, expected)


def test_a_pipeline_tells_what_our_engine_tells(tmp_path):
    stories = load_model(kv_dtype="float32", head="full")
    folder = stories.tokenizer.where
    prompt = "Once upon a time"
    params = bitnet.SamplingParams(temperature=0.0, max_tokens=12)
    expected = bitnet.generate(stories, prompt, params).text
    pipe = transformers.pipeline("text-generation", model=folder, dtype=torch.float32, device="cpu")
    options = transformers.GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0)
    (found,) = pipe(prompt, generation_config=options, return_full_text=False)
    assert found["generated_text"].strip() == expected.strip()
    assert any(isinstance(module, KernelLinear) for module in pipe.model.modules())


def set_code_three(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 0b11


def set_scale_zero(tensors):
    tensors["model.layers.2.self_attn.k_proj.weight_scale"][0] = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_code_three, r"model\.layers\.1\.mlp\.up_proj\.weight .* byte \[3, 5\]"),
        (set_scale_zero, r"model\.layers\.2\.self_attn\.k_proj\.weight_scale is \[0\.0\]"),
    ],
)
def test_damaged_files_are_refused_by_name(golden, tmp_path, change, message):
    folder = edited(golden, tmp_path, {}, change)
    with pytest.raises(FormatError, match=message):
        load(folder)


def test_masters_that_are_no_numbers_are_refused(golden, tmp_path):
    tensors = load_file(golden / "bf16_online/model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][2, 1] = torch.nan
    shutil.copy(golden / "bf16_online/config.json", tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"layers\.0\.mlp\.up_proj\.weight: weight holds NaN"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        (None, True),
        ("cpu", True),
        (torch.device("cpu"), True),
        ({"": "cpu"}, True),
        ({"model": "cpu", "lm_head": "disk"}, True),
        ({"": 0}, False),
        ({"model": "cpu", "lm_head": "cuda:1"}, False),
        ("cuda", False),
        (0, False),
    ],
)
def test_which_device_maps_are_ours(device_map, expected):
    assert _is_cpu(device_map) is expected


def test_other_devices_are_left_to_transformers(golden):
    config = transformers.AutoConfig.from_pretrained(golden / "packed_offline")
    with torch.device("meta"):
        model = transformers.BitNetForCausalLM(config)
    quantizer = KernelQuantizer(transformers.BitNetQuantConfig(linear_class="autobitlinear"))
    quantizer._process_model_before_weight_loading(model, device_map={"": "cuda:0"})
    assert type(model.lm_head) is torch.nn.Linear
    assert type(model.model.layers[0].mlp.down_proj).__module__.startswith("transformers.")
    assert set(quantizer.get_load_operations()) == {"deserialize"}


def test_without_transformers_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[:2] == ["bitnet", "hf"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "transformers.quantizers")
    with pytest.raises(ResourceError, match="package transformers; install the extra `transformers`"):
        import_module("bitnet.hf")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_variant_is_refused_whatever_class_is_asked(tmp_path, mode):
    config = replace(preset("stories"), hidden_size=64, num_hidden_layers=1, head_dim=16)
    synthesize(replace(config, quantization=variant("a4.8")), tmp_path / "model", mode=mode)
    with pytest.raises(ValueError, match="bitnet-variant"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="does not describe this model"):
        transformers.BitNetForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_llama_without_sub_norms_computes_what_our_engine_does(tmp_path, mode):
    config = replace(preset("stories"), hidden_size=64, num_hidden_layers=2, head_dim=16, hidden_act="silu")
    synthesize(replace(config, quantization=variant("pre")), tmp_path / "model", mode=mode)
    ids = [5, 9, 77, 300, 12, 8, 1000]
    model = load_model(tmp_path / "model", kv_dtype="float32")
    (expected,) = model.forward([(model.new_cache(8), ids)], all_logits=True)
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert type(llama.model.layers[0].mlp.up_proj) is KernelLinear
    with torch.no_grad():
        found = llama(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
