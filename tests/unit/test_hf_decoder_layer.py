"""The decoder layer in two native calls against the same layer module by module."""

import copy
import pickle

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
# transformers' own BitNet module compiles functions when it is imported, which makes PyTorch warn of itself
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values`:FutureWarning"),  # its name until 5.24
]

import bitnet.hf  # noqa: E402
from bitnet import _core  # noqa: E402
from bitnet.hf.linear import KernelLinear, layer_pool  # noqa: E402
from bitnet.quantize.packing import pack_2bit  # noqa: E402

TOLERANCE = 1e-4  # golden/README.md


@pytest.fixture(autouse=True)
def plug_in():
    yield bitnet.hf.enable()
    bitnet.hf.disable()


@pytest.fixture
def model(golden):
    return load(golden)


def load(golden, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(golden / "packed_offline", dtype=dtype)


@pytest.fixture
def safe_ids(golden_forward):
    return torch.from_numpy(golden_forward["ids_safe"]).long()


@pytest.fixture
def native_calls(monkeypatch):
    """The list grows with every layer that is computed natively."""
    from bitnet.hf.decoder_layer import KernelDecoderLayer

    calls = []
    decode = KernelDecoderLayer._decode

    def counted(self, *arguments):
        output = decode(self, *arguments)
        if output is not None:
            calls.append(self)
        return output

    monkeypatch.setattr(KernelDecoderLayer, "_decode", counted)
    return calls


def one_by_one(model, ids, prompt=0, **options):
    """Logits of every token; after `prompt` of them they come one at a time."""
    found, cache = [], transformers.DynamicCache(config=model.config)
    steps = ([(0, prompt)] if prompt else []) + [(i, i + 1) for i in range(prompt, ids.shape[1])]
    with torch.no_grad():
        for start, end in steps:
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True, **options)
            found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", ["packed_offline", "bf16_online"])
@pytest.mark.parametrize("prompt", [0, 3])
def test_logits_are_the_recorded_ones(golden, golden_forward, safe_ids, native_calls, kind, prompt):
    model = transformers.AutoModelForCausalLM.from_pretrained(golden / kind, dtype=torch.float32)
    found = one_by_one(model, safe_ids, prompt)
    # an empty cache is begun by transformers' own layer
    assert len(native_calls) == len(model.model.layers) * (safe_ids.shape[1] - max(prompt, 1))
    expected = golden_forward[f"safe_logits_{kind}_fp32"]
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE, rtol=0)


def test_bfloat16_is_close(golden, golden_forward, safe_ids, native_calls):
    found = one_by_one(load(golden, torch.bfloat16), safe_ids)
    assert native_calls
    assert found.dtype is torch.bfloat16
    expected = golden_forward["safe_logits_packed_offline_fp32"]
    assert np.corrcoef(found.float().numpy().ravel(), expected.ravel())[0, 1] > 0.99


def test_sequences_do_not_touch_each_other(model, safe_ids, native_calls):
    """Beams, for example: several sequences of one length."""
    other = safe_ids.flip(1)
    together = one_by_one(model, torch.cat([safe_ids, other, safe_ids]))
    assert len(native_calls) == len(model.model.layers) * (safe_ids.shape[1] - 1)
    assert torch.equal(together[:1], one_by_one(model, safe_ids))
    assert torch.equal(together[1:2], one_by_one(model, other))
    assert torch.equal(together[2], together[0])


def test_positions_of_their_own(model, safe_ids, native_calls):
    """Two sequences whose tokens stand at different positions."""
    ids, positions = safe_ids[:, :2].T, torch.tensor([[5], [9]])
    with torch.no_grad():
        both = model(ids, position_ids=positions, use_cache=False).logits
        assert native_calls
        for i in range(2):
            alone = model(ids[i : i + 1], position_ids=positions[i : i + 1], use_cache=False).logits
            assert torch.equal(both[i], alone[0])


class TestFallingBack:
    """Whatever asks for more than the native layer computes gets transformers' own."""

    def test_a_hook_is_called(self, model, safe_ids, native_calls):
        seen = []
        for layer in model.model.layers:
            layer.mlp.down_proj.register_forward_hook(lambda module, x, y: seen.append(module))
        one_by_one(model, safe_ids)
        assert not native_calls
        assert len(seen) == len(model.model.layers) * safe_ids.shape[1]

    def test_a_module_that_was_replaced(self, model, safe_ids, native_calls):
        class Adapter(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x) + 1

        mlp = model.model.layers[1].mlp
        before = one_by_one(model, safe_ids)
        native_calls.clear()
        mlp.down_proj = Adapter(mlp.down_proj)
        after = one_by_one(model, safe_ids)
        assert not torch.allclose(before, after)
        assert set(native_calls) == {model.model.layers[0], model.model.layers[2]}

    def test_a_forward_that_was_replaced(self, model, safe_ids, native_calls):
        norm = model.model.layers[0].mlp.ffn_sub_norm
        norm.forward = lambda x: torch.zeros_like(x)
        one_by_one(model, safe_ids)
        assert model.model.layers[0] not in native_calls

    def test_gradients(self, model, safe_ids, native_calls):
        model(safe_ids[:, :1]).logits.sum().backward()
        assert not native_calls
        assert model.model.layers[0].input_layernorm.weight.grad is not None

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_masked_positions(self, model, safe_ids, native_calls, implementation):
        model.set_attn_implementation(implementation)
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), safe_ids], 1)
        mask = (torch.arange(padded.shape[1]) >= 3).long()[None]
        cache = transformers.DynamicCache(config=model.config)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            end = padded.shape[1] - 1
            model(padded[:, :end], mask[:, :end], positions[:, :end], past_key_values=cache, use_cache=True)
            found = model(padded[:, end:], mask, positions[:, end:], past_key_values=cache, use_cache=True)
        assert not native_calls
        expected = one_by_one(model, safe_ids)[:, -1]
        torch.testing.assert_close(found.logits[:, -1], expected, atol=TOLERANCE, rtol=0)

    def test_attention_weights_and_other_implementations(self, model, safe_ids, native_calls):
        expected = one_by_one(model, safe_ids)
        native_calls.clear()
        model.set_attn_implementation("eager")
        found = one_by_one(model, safe_ids, output_attentions=True)
        assert not native_calls
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)

    def test_a_static_cache(self, model, safe_ids, native_calls):
        prompt = safe_ids[:, :4]
        options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        expected = model.generate(prompt, **options)
        assert native_calls
        native_calls.clear()
        static = transformers.StaticCache(config=model.config, max_cache_len=16)
        with torch.no_grad():
            model(prompt, past_key_values=static, use_cache=True)
            found = model(expected[:, 4:5], past_key_values=static, use_cache=True).logits.argmax(-1)
        assert not native_calls
        assert found.tolist() == expected[:, 5:6].tolist()


def test_hidden_states_are_still_handed_out(model, safe_ids, native_calls):
    with torch.no_grad():
        expected = model(safe_ids[:, :1], use_cache=False).logits
        assert native_calls
        output = model(safe_ids[:, :1], output_hidden_states=True)
    assert len(output.hidden_states) == len(model.model.layers) + 1
    torch.testing.assert_close(output.logits, expected, atol=TOLERANCE, rtol=0)


def test_what_is_changed_later_counts(model, safe_ids):
    before = one_by_one(model, safe_ids)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(-1)
        changed = one_by_one(model, safe_ids)
        assert not torch.allclose(before, changed)
        model.model.layers[0].input_layernorm.weight.mul_(-1)
        model.model.layers[1].self_attn.o_proj.weight_scale.mul_(2)
        assert not torch.allclose(before, one_by_one(model, safe_ids))
        model.model.layers[1].self_attn.o_proj.weight_scale.mul_(0.5)
    assert torch.equal(before, one_by_one(model, safe_ids))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_stand_alone(model, safe_ids, again):
    before = one_by_one(model, safe_ids)
    copied = again(model)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.mul_(2)
        model.model.layers[0].mlp.gate_proj.weight.fill_(0x55)
    assert torch.equal(one_by_one(copied, safe_ids), before)


class TestCaches:
    """Keys and values stand at the beginning of a larger buffer, and nobody may notice."""

    def step(self, model, cache, token):
        with torch.no_grad():
            return model(token, past_key_values=cache, use_cache=True).logits

    def filled(self, model, ids):
        cache = transformers.DynamicCache(config=model.config)
        self.step(model, cache, ids)
        return cache

    def plain(self, model, ids):
        """The logits of the last token, from an empty cache."""
        return self.step(model, transformers.DynamicCache(config=model.config), ids)[:, -1:]

    def close(self, found, expected):
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)

    def test_the_cache_is_what_transformers_makes_it(self, model, safe_ids, native_calls):
        ours, theirs = (self.filled(model, safe_ids[:, :4]) for _ in range(2))
        for i in (4, 5):
            self.step(model, ours, safe_ids[:, i : i + 1])
        assert native_calls
        self.step(model, theirs, safe_ids[:, 4:6])
        assert ours.get_seq_length() == 6
        for mine, other in zip(ours.layers, theirs.layers, strict=True):
            self.close(mine.keys, other.keys)
            self.close(mine.values, other.values)

    def test_a_buffer_that_is_full_grows(self, model, safe_ids, native_calls, monkeypatch):
        expected = self.step(model, transformers.DynamicCache(config=model.config), safe_ids)
        monkeypatch.setattr("bitnet.hf.cache_room._POSITIONS", 2)
        self.close(one_by_one(model, safe_ids), expected)

    def test_what_is_cut_off_is_written_anew(self, model, safe_ids, native_calls):
        cache = self.filled(model, safe_ids[:, :4])
        for token in (7, 8, 9):
            self.step(model, cache, torch.tensor([[token]]))
        cache.crop(-3)
        self.close(self.step(model, cache, safe_ids[:, 4:5]), self.plain(model, safe_ids[:, :5]))

    @pytest.mark.parametrize("again", [copy.deepcopy, copy.copy])
    def test_a_copy_goes_its_own_way(self, model, safe_ids, native_calls, again):
        cache = self.filled(model, safe_ids[:, :4])
        self.step(model, cache, safe_ids[:, 4:5])
        other = again(cache)
        other.layers = [again(layer) for layer in cache.layers]
        self.step(model, cache, torch.tensor([[7]]))
        found = self.step(model, other, safe_ids[:, 5:6])
        self.step(model, cache, torch.tensor([[9]]))
        self.close(found, self.plain(model, safe_ids[:, :6]))
        self.close(self.step(model, other, safe_ids[:, 6:7]), self.plain(model, safe_ids[:, :7]))

    def test_beams_are_reordered(self, model, safe_ids, native_calls):
        both = torch.cat([safe_ids, safe_ids.flip(1)])
        cache = self.filled(model, both[:, :4])
        self.step(model, cache, both[:, 4:5])
        cache.reorder_cache(torch.tensor([1, 0]))
        found = self.step(model, cache, both.flip(0)[:, 5:6])
        assert native_calls
        self.close(found, self.plain(model, both.flip(0)[:, :6]))

    def test_beam_search_finds_what_it_does_module_by_module(self, model, safe_ids, native_calls):
        options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        found = model.generate(safe_ids[:, :4], **options)
        assert native_calls
        native_calls.clear()
        model.model.layers[0].register_forward_hook(lambda *_: None)
        for layer in model.model.layers:
            layer.mlp.register_forward_hook(lambda *_: None)
        assert torch.equal(found, model.generate(safe_ids[:, :4], **options))
        assert not native_calls


HIDDEN, INNER, KV_HEADS, HEAD_DIM = 12, 20, 2, 6
QUERIES, KEYS = 2 * KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
SHAPES = [(QUERIES, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, QUERIES)]
SHAPES += [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]


def native_layer(shapes=SHAPES, norms=(HIDDEN, QUERIES, HIDDEN, INNER), **changes):
    random = np.random.default_rng(0)
    linears = []
    for rows, columns in shapes:
        codes = random.integers(-1, 2, size=(rows, columns)).astype(np.int8)
        linears.append(_core.TernaryLinear(pack_2bit(codes), 0.5, layer_pool()))
    values = {
        "linears": linears,
        "norms": [np.ones(width, np.float32) for width in norms],
        "eps": [1e-5] * 4,
        "kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "attention_scale": 0.3,
        "hidden_act": "relu2",
    }
    return _core.DecoderLayer(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "relu2 or silu"),
        ({"head_dim": 5}, "head_dim"),
        ({"kv_heads": 0}, "positive"),
        ({"kv_heads": 5}, "heads and projections"),
        ({"kv_heads": 2**63, "head_dim": 2}, "heads and projections"),  # whose product wraps around to 0
        ({"linears": []}, "7 linears"),
        ({"eps": [1e-5]}, "4 eps"),
        ({"norms": (HIDDEN, HIDDEN, HIDDEN, INNER)}, "shapes disagree"),
        ({"shapes": [*SHAPES[:6], (HIDDEN, HIDDEN)]}, "shapes disagree"),
    ],
)
def test_native_layers_refuse_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        native_layer(**changes)


def arrays(tokens=2, positions=3):
    def floats(*shape):
        return np.ones(shape, np.float32)

    project = {"x": floats(tokens, HIDDEN), "cos": floats(1, HEAD_DIM), "sin": floats(1, HEAD_DIM)}
    keys, values = (floats(tokens, KV_HEADS, positions, HEAD_DIM) for _ in "kv")
    project |= {"query": floats(tokens, QUERIES), "keys": keys, "values": values}
    finish = {name: project[name] for name in ("x", "query", "keys", "values")}
    finish |= {"positions": positions, "y": np.full((tokens, HIDDEN), np.nan, np.float32)}
    return project | {"position": positions - 1}, finish


@pytest.mark.parametrize("name", ["x", "cos", "sin", "query", "keys", "values", "y"])
def test_native_calls_refuse_arrays_that_do_not_fit(name):
    layer = native_layer()
    for call, sound in zip((layer.project, layer.finish), arrays(), strict=True):
        call(**sound)
        if name not in sound:
            continue
        array = sound[name]
        for wrong in (array[..., :-1].copy(), array[..., ::2], array[None].copy(), array.astype(np.float64)):
            with pytest.raises((ValueError, TypeError, RuntimeError)):
                call(**(sound | {name: wrong}))
    for positions in (0, 4):
        with pytest.raises(ValueError, match="a position is outside"):
            layer.finish(**(arrays()[1] | {"positions": positions}))
    with pytest.raises(ValueError, match="a position is outside"):
        layer.project(**(arrays()[0] | {"position": 3}))


@pytest.mark.parametrize("hidden_act", ["relu2", "silu"])
@pytest.mark.parametrize("positions", [1, 70])
def test_finish_is_what_its_parts_are(hidden_act, positions):
    """Attention by PyTorch, products by KernelLinear, norms written out."""
    random = torch.Generator().manual_seed(0)
    rows = np.random.default_rng(3)
    layers = []
    for shape in SHAPES:
        layer = KernelLinear(shape[1], shape[0])
        layer.weight = torch.from_numpy(pack_2bit(rows.integers(-1, 2, size=shape).astype(np.int8)))
        layers.append(layer)
    norms = [torch.rand(width, generator=random) + 0.5 for width in (HIDDEN, QUERIES, HIDDEN, INNER)]
    native = _core.DecoderLayer(
        [layer.current_kernel() for layer in layers],
        [norm.numpy() for norm in norms],
        [1e-5] * 4,
        KV_HEADS,
        HEAD_DIM,
        0.3,
        hidden_act,
    )
    x, query = torch.randn(3, HIDDEN, generator=random), torch.randn(3, QUERIES, generator=random)
    keys, values = torch.randn(2, 3, KV_HEADS, positions, HEAD_DIM, generator=random)
    y = torch.full_like(x, torch.nan)
    room = torch.full((2, 3, KV_HEADS, positions + 5, HEAD_DIM), torch.nan)
    room[:, :, :, :positions] = torch.stack([keys, values])
    native.finish(x.numpy(), query.numpy(), *room.numpy(), positions, y.numpy())

    def normed(hidden, norm):
        return torch.nn.functional.rms_norm(hidden, (len(norm),), norm, 1e-5)

    heads = query.view(3, -1, 1, HEAD_DIM)
    attended = torch.nn.functional.scaled_dot_product_attention(
        heads, keys, values, scale=0.3, enable_gqa=True
    )
    hidden = x + layers[3](normed(attended.reshape(3, QUERIES), norms[1]))
    inner = normed(hidden, norms[2])
    gate = layers[4](inner)
    gate = gate.relu().square() if hidden_act == "relu2" else torch.nn.functional.silu(gate)
    hidden = hidden + layers[6](normed(gate * layers[5](inner), norms[3]))
    torch.testing.assert_close(y, hidden, atol=1e-4, rtol=1e-4)
