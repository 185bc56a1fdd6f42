"""Turn the linear layers of any PyTorch model into BitLinears, in place.

A layer changes its class, and gains a norm where its recipe has one inside. So it stays the object that
optimisers, hooks, containers and tied weights know: parameters, dtype, device, training and gradient flags
need no copying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from torch import nn

from bitnet.errors import InputError
from bitnet.nn.bitlinear import BitLinear, check_groups
from bitnet.quant_config import LinearRecipe

_Model = TypeVar("_Model", bound=nn.Module)

_HEAD = "lm_head"  # what the head of most language models is called; not every model has one


def convert(
    model: _Model,
    skip: Sequence[str] = (_HEAD,),
    recipe: LinearRecipe | Callable[[str, nn.Linear], LinearRecipe] | None = None,
) -> tuple[_Model, list[str]]:
    """Make every `nn.Linear` in `model` a `BitLinear` whose masters are the weights that are there.

    Left as they are: what `skip` names; subclasses of `nn.Linear`, which may compute something else
    (BitLinear itself, parametrised layers, adapters, the output layer of `nn.MultiheadAttention`); and a
    layer whose weight a module of another kind holds, too: a head that is tied to its embedding.

    Args:
        model: changed in place.
        skip: names of modules that stay in full precision with everything in them, as `named_modules` gives
            them or their ends: "lm_head", "attention.out", "encoder".
        recipe: which quantisers, for all layers or by full name and layer; None is b1.58's. A scale a row is
            `lambda name, layer: LinearRecipe(row_groups=layer.out_features)`.
    Returns:
        `model`, and the full names of the layers that were replaced; a layer in several places has several.
    Raises:
        InputError: there is nothing to replace, `skip` names a module that is not there, or a weight is not
            made yet, is no floating-point matrix or cannot be split into a recipe's groups. Nothing was
            changed then.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"convert takes an nn.Module, not a {type(model).__name__}")
    if isinstance(skip, str):
        raise InputError(f"skip is the string {skip!r}; pass a sequence of names, ({skip!r},)")
    modules = dict(model.named_modules(remove_duplicate=False))
    for pattern in skip:
        if pattern != _HEAD and not any(_matches(name, pattern) for name in modules):
            raise InputError(f"skip names {pattern!r}, but no module of the model is called so")
    # a module in several places is skipped in all of them
    kept = {id(module) for name, module in modules.items() if any(_matches(name, one) for one in skip)}
    kept |= _tied_to_others(model)
    chosen = {
        name: module
        for name, module in modules.items()
        if type(module) is nn.Linear and id(module) not in kept
    }
    lazy = [name for name, module in modules.items() if isinstance(module, nn.LazyLinear)]
    if lazy:
        raise InputError(f"{lazy[0]} has no weight yet (LazyLinear); run the model once before convert")
    for name, module in chosen.items():
        if not module.weight.is_floating_point():
            raise InputError(
                f"{name}.weight is {module.weight.dtype}; BitLinear needs floating-point masters"
            )
    if not chosen and not any(isinstance(module, BitLinear) for module in modules.values()):
        raise InputError(
            f"{type(model).__name__} has no nn.Linear that could be replaced (skip is {tuple(skip)})"
        )
    recipes = {name: _recipe_of(name, module, recipe) for name, module in chosen.items()}
    for name, module in chosen.items():
        module.__class__ = BitLinear
        cast(BitLinear, module).follow(recipes[name])
    return model, list(chosen)


def _recipe_of(
    name: str, layer: nn.Linear, recipe: LinearRecipe | Callable[[str, nn.Linear], LinearRecipe] | None
) -> LinearRecipe:
    chosen = LinearRecipe() if recipe is None else recipe(name, layer) if callable(recipe) else recipe
    try:
        check_groups(layer.in_features, layer.out_features, chosen)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """Whether a module is the one a pattern names, or inside it."""
    return f".{pattern}." in f".{name}."


def _tied_to_others(model: nn.Module) -> set[int]:
    """Ids of the linear layers whose weight is also a parameter of a module that is no linear layer."""
    others = {
        id(parameter)
        for module in model.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    }
    return {
        id(module)
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module._parameters.get("weight")) in others
    }
