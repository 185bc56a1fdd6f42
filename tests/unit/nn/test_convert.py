"""convert: which layers of foreign models become BitLinears, and that nothing else about them changes."""

import copy

import pytest
import torch
from torch import nn

from bitnet.errors import InputError
from bitnet.nn import BitLinear, convert
from bitnet.quant_config import LinearRecipe


class Tied(nn.Module):
    """A model of the usual form: an embedding, blocks, and a head that shares the embedding's weight."""

    def __init__(self, head="lm_head"):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        blocks = (nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2))
        self.blocks = nn.ModuleList(blocks)
        setattr(self, head, nn.Linear(8, 10, bias=False))
        getattr(self, head).weight = self.embed.weight
        self.head = getattr(self, head)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


LAYERS = ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]


def test_linears_become_bitlinears_and_compute_as_such():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
    twin = nn.Sequential(BitLinear(7, 5), nn.Tanh(), BitLinear(5, 3, bias=False))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(4, 7)
    before = model(x)
    same, names = convert(model)
    assert same is model
    assert names == ["0", "2"]
    assert torch.equal(model(x), twin(x))
    assert not torch.equal(model(x), before)
    model(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_layer_keeps_its_parameters_flags_hooks_and_state():
    layer = nn.Linear(6, 4, dtype=torch.bfloat16)
    layer.weight.requires_grad_(False)
    model = nn.ModuleDict({"only": layer}).eval()
    optimizer = torch.optim.SGD([layer.bias], lr=1.0)
    calls = []
    layer.register_forward_hook(lambda module, inputs, output: calls.append(type(module)))
    state = copy.deepcopy(model.state_dict())
    weight = layer.weight
    convert(model)
    converted = model["only"]
    assert type(converted) is BitLinear
    assert converted.weight is weight
    assert weight.dtype is torch.bfloat16
    assert not weight.requires_grad
    assert not converted.training
    assert optimizer.param_groups[0]["params"][0] is converted.bias
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert converted(torch.randn(2, 6, dtype=torch.bfloat16)).dtype is torch.bfloat16
    assert calls == [BitLinear]


@pytest.mark.parametrize("head", ["lm_head", "out"])
def test_a_head_tied_to_the_embedding_stays(head):
    model = Tied(head)
    assert convert(model)[1] == LAYERS
    assert type(model.head) is nn.Linear
    assert model.head.weight is model.embed.weight
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 10)


@pytest.mark.parametrize(
    ("skip", "names"),
    [
        (("lm_head", "blocks.1"), LAYERS[:2]),
        (["0.2"], ["blocks.0.0", "blocks.1.0", "blocks.1.2"]),
        (("2",), ["blocks.0.0", "blocks.1.0"]),
        ((), LAYERS),
    ],
)
def test_skip_names_modules_by_their_ends_and_all_within(skip, names):
    assert convert(Tied(), skip)[1] == names


def test_names_match_whole_parts():
    model = nn.ModuleDict({"up": nn.Linear(4, 4), "up_proj": nn.Linear(4, 4)})
    assert convert(model, skip=["up"])[1] == ["up_proj"]


def test_shared_layers_and_shared_weights_stay_shared():
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    model = nn.Sequential(one, other, one)
    assert convert(model)[1] == ["0", "1", "2"]
    assert model[0] is model[2]
    assert model[0].weight is model[1].weight
    # skipped in one place is skipped in all
    one = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": one, "lm_head": one, "b": nn.Linear(4, 4)})
    assert convert(model)[1] == ["b"]


def test_subclasses_are_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleDict(
        {"scaled": Scaled(4, 4), "attention": nn.MultiheadAttention(4, 2), "plain": nn.Linear(4, 4)}
    )
    model["normed"] = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    assert convert(model)[1] == ["plain"]
    x = torch.randn(3, 4)
    assert torch.equal(model["scaled"](x), 2 * nn.functional.linear(x, *model["scaled"].parameters()))
    assert model["attention"](x, x, x)[0].shape == (3, 4)
    assert convert(model)[1] == []  # a second time there is nothing left, which is no error


def test_the_model_itself_may_be_the_layer():
    model, names = convert(nn.Linear(4, 4))
    assert type(model) is BitLinear
    assert names == [""]


@pytest.mark.parametrize(
    ("model", "skip", "message"),
    [
        (nn.Conv1d(2, 2, 1), (), "Conv1d has no nn.Linear"),
        (nn.ModuleDict({"lm_head": nn.Linear(2, 2)}), ("lm_head",), "no nn.Linear"),
        (nn.Sequential(nn.Linear(2, 2)), "lm_head", "sequence of names"),
        (nn.Sequential(nn.Linear(2, 2)), ["q_proj"], "'q_proj'"),
        (nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), (), "1 has no weight yet"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.cfloat)),
            (),
            "1.weight is torch.complex64",
        ),
        ([nn.Linear(2, 2)], (), "not a list"),
    ],
    ids=["no linear", "all skipped", "string", "unknown name", "lazy", "complex", "no module"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")  # PyTorch says that they are new
def test_what_cannot_be_meant_is_refused_and_nothing_changes(model, skip, message):
    with pytest.raises(InputError, match=message):
        convert(model, skip)
    if isinstance(model, nn.Module):
        assert not any(isinstance(module, BitLinear) for module in model.modules())


def test_layers_take_a_recipe_or_each_its_own():
    torch.manual_seed(0)
    recipe = LinearRecipe("binary", inputs="int4", rotate=True, norm="layer")
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)).eval()
    twin = nn.Sequential(BitLinear(8, 6, recipe=recipe), BitLinear(6, 4, recipe=recipe))
    twin.load_state_dict(model.state_dict(), strict=False)
    convert(model, recipe=recipe)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert not model[0].layer_norm.training
    x = torch.randn(3, 8)
    assert torch.equal(model(x), twin(x))
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    asked = []

    def rows(name, layer):
        asked.append(name)
        return LinearRecipe(row_groups=layer.out_features)

    convert(model, recipe=rows)
    assert asked == ["0", "1"]
    assert [layer.recipe.row_groups for layer in model] == [6, 4]


def test_groups_that_do_not_divide_change_nothing():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    with pytest.raises(InputError, match="1: a layer of 6 inputs and 4 outputs cannot be split"):
        convert(model, recipe=LinearRecipe(row_groups=3))
    assert all(type(layer) is nn.Linear for layer in model)
