"""Every way in which tensors can contradict a configuration is named, tensor and all."""

from dataclasses import replace

import numpy as np
import pytest

from bitnet.errors import FormatError
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import EMBEDDING, HEAD
from bitnet.formats.validate import multipliers, validate

Q = "model.layers.0.self_attn.q_proj"
NORM = "model.layers.1.mlp.ffn_sub_norm.weight"


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_sound_tensors_pass(small, make_tensors, dtype, mode):
    config = small.with_quantization(mode)
    tensors = make_tensors(config, dtype)
    assert validate(config, tensors, "here") == tensors


def test_missing_tensors_are_counted(small, make_tensors):
    tensors = make_tensors(small)
    del tensors[f"{Q}.weight"], tensors[f"{Q}.weight_scale"]
    with pytest.raises(FormatError, match=rf"here: {Q}\.weight is missing \(and 1 more\)"):
        validate(small, tensors, "here")


def test_unknown_tensor(small, make_tensors):
    tensors = make_tensors(small) | {"model.layers.7.extra": Tensor.of(np.zeros(1, np.float32))}
    with pytest.raises(FormatError, match=r"no place for model\.layers\.7\.extra$"):
        validate(small, tensors, "here")


def test_biases_exist_exactly_where_the_configuration_says(small, make_tensors):
    with_biases = make_tensors(small)
    without = make_tensors(replace(small, attention_bias=False))
    with pytest.raises(FormatError, match=r"no place for .*k_proj\.bias"):
        validate(replace(small, attention_bias=False), with_biases, "here")
    with pytest.raises(FormatError, match=rf"{Q}\.bias is missing"):
        validate(small, without, "here")


def test_shapes_are_both_named(small, make_tensors):
    tensors = make_tensors(small)
    tensors[NORM] = Tensor.of(np.ones(29, np.float32))
    with pytest.raises(FormatError, match=rf"{NORM} has shape \[29\], but the configuration asks for \[28\]"):
        validate(small, tensors, "here")


def test_dtypes_are_named(small, make_tensors):
    tensors = make_tensors(small)
    tensors[NORM] = Tensor("I32", (28,), np.ones(28, np.int32))
    with pytest.raises(FormatError, match=rf"{NORM} is I32; expected BF16 or F16 or F32"):
        validate(small, tensors, "here")
    tensors = make_tensors(small)
    tensors[f"{Q}.weight"] = Tensor("I8", (6, 12), np.ones((6, 12), np.int8))
    with pytest.raises(FormatError, match=rf"{Q}\.weight is I8; expected U8"):
        validate(small, tensors, "here")


def test_modes_that_contradict_the_tensors(small, make_tensors, as_online):
    online = as_online(small)
    with pytest.raises(FormatError, match=rf"quantization_mode is 'offline'.*{Q}\.weight is BF16 \[24, 12\]"):
        validate(small, make_tensors(online), "here")
    with pytest.raises(
        FormatError, match=rf"quantization_mode is 'online'.*{Q}\.weight is packed U8 \[6, 12\]"
    ):
        validate(online, make_tensors(small), "here")


@pytest.mark.parametrize("scale", [np.nan, np.inf, 0.0, -1.5, 1e-45])
def test_impossible_scales(small, make_tensors, scale):
    tensors = make_tensors(small)
    tensors[f"{Q}.weight_scale"] = Tensor.of(np.array([scale], np.float32))
    with pytest.raises(FormatError, match=rf"{Q}\.weight_scale is .*positive finite"):
        validate(small, tensors, "here")


def test_scale_without_an_axis(small, make_tensors):
    tensors = make_tensors(small)
    tensors[f"{Q}.weight_scale"] = Tensor.of(np.array(1.25, np.float32))
    assert multipliers(small, validate(small, tensors, "here")[f"{Q}.weight_scale"]) == 1.25


def test_code_three(small, make_tensors):
    tensors = make_tensors(small)
    tensors[f"{Q}.weight"].data[4, 9] = 0b11
    with pytest.raises(FormatError, match=rf"{Q}\.weight holds the invalid code 3 in byte \[4, 9\]"):
        validate(small, tensors, "here")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", [f"{Q}.weight", f"{Q}.bias", NORM, EMBEDDING, HEAD])
def test_non_finite_floats(small, make_tensors, as_online, name, bad):
    config = as_online(small)
    tensors = make_tensors(config, "F32")
    tensors[name].data.reshape(-1)[5] = bad
    with pytest.raises(FormatError, match=rf"{name} holds NaN or infinity at \["):
        validate(config, tensors, "here")


def test_tied_head_that_repeats_the_embedding_is_dropped(small, make_tensors):
    tied = replace(small, tie_word_embeddings=True)
    tensors = make_tensors(tied)
    repeated = tensors | {HEAD: tensors[EMBEDDING]}
    assert validate(tied, repeated, "here") == tensors


@pytest.mark.parametrize("change", ["value", "dtype", "shape"])
def test_tied_head_that_differs_is_refused(small, make_tensors, change):
    tied = replace(small, tie_word_embeddings=True)
    tensors = make_tensors(tied)
    same = tensors[EMBEDDING]
    data = same.data.copy()
    data[3, 3] ^= 1
    tensors[HEAD] = {
        "value": Tensor("BF16", same.shape, data),
        "dtype": Tensor.of(same.float32()),
        "shape": Tensor("BF16", (20, 11), same.data[:, :11]),
    }[change]
    with pytest.raises(FormatError, match=rf"{HEAD} differs from {EMBEDDING}.*tie_word_embeddings"):
        validate(tied, tensors, "here")


def test_untied_head_is_required(small, make_tensors):
    tensors = make_tensors(small)
    del tensors[HEAD]
    with pytest.raises(FormatError, match=rf"{HEAD} is missing"):
        validate(small, tensors, "here")


def test_more_layers_than_anyone_could_store(small, make_tensors):
    with pytest.raises(FormatError, match="num_hidden_layers is 1000000000000"):
        validate(replace(small, num_hidden_layers=10**12), make_tensors(small), "here")
