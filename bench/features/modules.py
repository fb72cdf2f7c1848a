"""torch.nn.Module and what is built on it: state, copies, parametrisations, hooks, optimizers."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
import torch.nn.utils.prune as prune
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bench.features.check import GRADIENTS, bits, flat, same, trained
from bench.features.layers import CELLS, KINDS, Layers, Tagger
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def _pair(layers: Layers, kind: str) -> tuple[Any, Any, Tensor]:
    if kind in CELLS:
        return *layers.pair(kind, 3, 4), torch.randn(2, 3)
    return *layers.pair(kind, 3, 4, **DEEP), torch.randn(2, 5, 3)


def _hh(kind: str) -> str:
    return "weight_hh" if kind in CELLS else "weight_hh_l0"


@probe("state_dict", "exchanged with torch.nn's in both directions, strict", each=KINDS + CELLS)
def state_dict(layers: Layers, kind: str) -> None:
    layer, _, x = _pair(layers, kind)
    other = getattr(nn, kind)(3, 4, **({} if kind in CELLS else DEEP))
    layer.load_state_dict(other.state_dict())
    same(layer(x), other(x))
    fresh = getattr(nn, kind)(3, 4, **({} if kind in CELLS else DEEP))
    assert list(layer.state_dict()) == list(fresh.state_dict())
    fresh.load_state_dict(layer.state_dict())
    same(layer(x), fresh(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))


@probe("attributes", "names, repr, all_weights, flatten_parameters, as torch.nn's", each=KINDS + CELLS)
def attributes(layers: Layers, kind: str) -> None:
    layer, twin, _ = _pair(layers, kind)
    assert repr(layer) == repr(twin), repr(layer)
    assert type(layer).__name__ == kind
    for name in twin.__dict__:
        assert name in layer.__dict__, f"no attribute {name}"
    if kind not in CELLS:
        same(layer.all_weights, twin.all_weights)
        layer.flatten_parameters()


@probe("pickle", "also torch.save of the whole module; a model that holds it", each=KINDS + CELLS)
def pickling(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    model = nn.ModuleList([layer.eval()])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for loaded in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert type(loaded[0]) is type(layer) and not loaded[0].training
        same(trained(loaded[0], loaded[0], x), trained(twin, twin, x), **GRADIENTS)


@probe("copy.deepcopy", "after a training step; the copy is independent", each=KINDS + CELLS)
def deepcopy(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    trained(layer, layer, x)
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    same(trained(made, made, x), trained(twin, twin, x), **GRADIENTS)


def _parametrised(layers: Layers, kind: str, change: Any) -> None:
    """`change` of the layer before, of a copy of it, and of a torch.nn layer that is converted after."""
    layer, twin, x = _pair(layers, kind)
    converted = layers.convert(nn.ModuleList([copy.deepcopy(twin)]))[0]
    late = copy.deepcopy(twin)
    for module in (layer, twin, converted, late):
        torch.manual_seed(2)
        change(module)
        module.eval()
    late = layers.convert(nn.ModuleList([late]))[0]
    want = trained(twin, twin, x)
    made = [copy.deepcopy(module) for module in (layer, converted, late)]
    for module in (layer, converted, late, *made):
        same(trained(module, module, x), want, **GRADIENTS)
    # A copy lives on its own.
    with torch.no_grad():
        for module in (layer, converted, late):
            for p in module.parameters():
                p.zero_()
    for module in made:
        same(trained(module, module, x), want, **GRADIENTS)


@probe("weight_norm", "parametrisation; its deep copies; also before convert; gradients", each=KINDS + CELLS)
def weight_norm(layers: Layers, kind: str) -> None:
    _parametrised(layers, kind, lambda m: parametrizations.weight_norm(m, _hh(kind)))


@probe("weight_norm, the older form", "torch.nn.utils.weight_norm; gradients", each=KINDS + CELLS)
def weight_norm_hook(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        nn.utils.weight_norm(module, _hh(kind))
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


@probe(
    "spectral_norm", "parametrisation; its deep copies; also before convert; gradients", each=KINDS + CELLS
)
def spectral_norm(layers: Layers, kind: str) -> None:
    _parametrised(layers, kind, lambda m: parametrizations.spectral_norm(m, _hh(kind)))


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@probe("parametrize", "one's own on weight_hh; deep copies, removal; also before convert", each=KINDS + CELLS)
def own_parametrisation(layers: Layers, kind: str) -> None:
    _parametrised(layers, kind, lambda m: parametrize.register_parametrization(m, _hh(kind), Halved()))
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        parametrize.register_parametrization(module, _hh(kind), Halved())
        with parametrize.cached():
            module(x)
        parametrize.remove_parametrizations(module, _hh(kind))
    assert type(layer) is getattr(layers, kind)
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


@probe(
    "state_dict of a parametrised layer",
    "strict into a parametrised torch.nn layer and back",
    each=KINDS + CELLS,
)
def parametrised_state(layers: Layers, kind: str) -> None:
    layer, _, x = _pair(layers, kind)
    twin = getattr(nn, kind)(3, 4, **({} if kind in CELLS else DEEP))
    for module in (layer, twin):
        parametrizations.weight_norm(module, _hh(kind))
    twin.load_state_dict(layer.state_dict())
    same(layer(x), twin(x))
    layer.load_state_dict({name: value / 2 for name, value in twin.state_dict().items()})
    twin.load_state_dict(layer.state_dict())
    same(layer(x), twin(x))


@probe("pruning", "torch.nn.utils.prune, trained, made permanent", each=KINDS + CELLS)
def pruning(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        prune.l1_unstructured(module, _hh(kind), 0.5)
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)
    for module in (layer, twin):
        prune.remove(module, _hh(kind))
    same(layer(x), twin(x))
    assert int((getattr(layer, _hh(kind)) == 0).sum()) == getattr(layer, _hh(kind)).numel() // 2


@probe("AveragedModel", "stochastic weight averaging and EMA, of a converted model too", each=KINDS)
def averaged(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4, **DEEP)
    converted = layers.convert(copy.deepcopy(twin))
    x = torch.randn(2, 5, 3)
    for average in (None, get_ema_multi_avg_fn(0.9)):
        results = []
        for module in (model, twin, converted):
            module = copy.deepcopy(module)
            averaged = AveragedModel(module, multi_avg_fn=average)
            optimizer = torch.optim.SGD(module.parameters(), 0.1)
            for _ in range(3):
                trained(module, module, x)
                optimizer.step()
                averaged.update_parameters(module)
            results.append(averaged(x))
        same(results[0], results[1], **GRADIENTS)
        same(results[2], results[1], **GRADIENTS)


@probe("EMA of a parametrised layer", "AveragedModel of a model whose layer has weight_norm", each=KINDS)
def averaged_parametrised(layers: Layers, kind: str) -> None:
    model, twin = layers.taggers(kind, 3, 4)
    for module in (model, twin):
        parametrizations.weight_norm(module.rnn, "weight_hh_l0")
    converted = layers.convert(copy.deepcopy(twin))
    x = torch.randn(5, 2, 3)
    results = []
    for module in (model, twin, converted):
        averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        averaged.update_parameters(module)
        results.append(averaged(x))
    same(results[0], results[1])
    same(results[2], results[1])


@probe(
    "hooks of load_state_dict and state_dict",
    "called once, with the layer in use, of a converted model too",
    each=KINDS,
)
def load_hooks(layers: Layers, kind: str) -> None:
    direct, _ = layers.taggers(kind, 3, 4)
    later = Tagger(getattr(nn, kind)(3, 4))
    for model, convert in ((direct, False), (later, True)):
        seen: list[Any] = []

        def rename(
            module: Any, state: dict[str, Tensor], prefix: str, *_: Any, seen: list[Any] = seen
        ) -> None:
            seen.append(module)
            state[prefix + "weight_hh_l0"] = state.pop(prefix + "W")

        model.rnn.register_load_state_dict_pre_hook(rename)
        model.rnn.register_load_state_dict_post_hook(lambda m, keys, seen=seen: seen.append(m))
        model.rnn.register_state_dict_pre_hook(lambda m, prefix, keep, seen=seen: seen.append(m))
        model.rnn.register_state_dict_post_hook(lambda m, state, prefix, local, seen=seen: seen.append(m))
        used = layers.convert(model) if convert else model
        state = used.state_dict()
        state["rnn.W"] = state.pop("rnn.weight_hh_l0") * 2
        want = state["rnn.W"].clone()
        used.load_state_dict(state)
        bits(used.rnn.weight_hh_l0, want)
        assert len(seen) == 4, f"{len(seen)} calls of 4 hooks"
        assert all(module is used.rnn for module in seen), "a hook was given another module"


@probe("_flat_weights assigned", "honoured, as older weight-drop code expects", each=KINDS)
def flat_weights(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        module._flat_weights = [weight / 2 for weight in module._flat_weights]
    same(layer(x), twin(x))


@probe("an item of _flat_weights assigned", "honoured", each=KINDS)
def flat_weights_item(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        module._flat_weights[1] = module._flat_weights[1] / 2
    same(layer(x), twin(x))


@probe(
    "weights replaced",
    "by a Parameter, by a tensor (weight drop); gradients reach the origin",
    each=KINDS + CELLS,
)
def replaced(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    results = []
    for module in (layer, twin):
        setattr(module, _hh(kind), nn.Parameter(getattr(module, _hh(kind)).detach() / 2))
        first = trained(module, module, x)
        raw = nn.Parameter(module._parameters.pop(_hh(kind)).detach())
        setattr(module, _hh(kind), raw * 3)
        y = flat(module(x))[0]
        y.sin().sum().backward()
        results.append([*first, y, raw.grad])
    same(*results, **GRADIENTS)


@probe(
    "isinstance(layer, torch.nn.LSTM)", "after convert, for code that chooses by class", each=KINDS + CELLS
)
def by_class(layers: Layers, kind: str) -> None:
    model = layers.convert(nn.ModuleList([getattr(nn, kind)(3, 4), nn.Linear(3, 3)]))
    found: list[Any] = []

    def initialise(module: Any) -> None:
        if isinstance(module, getattr(nn, kind)):
            found.append(module)
            nn.init.orthogonal_(getattr(module, _hh(kind)))

    model.apply(initialise)
    assert len(found) == 1, "not found by its class"
    assert type(model[0]) is getattr(layers, kind) or isinstance(model[0], getattr(layers, kind))
    x = torch.randn(2, 3)
    twin = getattr(nn, kind)(3, 4)
    twin.load_state_dict(model[0].state_dict())
    same(model[0](x), twin(x))


@probe(
    "module hooks", "forward, forward_pre (with kwargs), full_backward, and global ones", each=KINDS + CELLS
)
def hooks(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    results = []
    for module in (layer, twin):
        order: list[str] = []
        gradients: list[Tensor] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, i, o, seen=order: seen.append("global")
        )
        module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
        module.register_forward_pre_hook(
            lambda m, args, kwargs, seen=order: seen.append(f"pre {len(args)} {sorted(kwargs)}"),
            with_kwargs=True,
        )
        module.register_forward_hook(lambda m, args, out, seen=order: seen.append("forward"))
        module.register_full_backward_pre_hook(lambda m, g, seen=order: seen.append("backward pre"))
        module.register_full_backward_hook(lambda m, gi, go, seen=gradients: seen.extend(gi + go[:1]))
        leaf = x.clone().requires_grad_()
        y = flat(module(leaf))[0]
        y.sin().sum().backward()
        handle.remove()
        results.append((order, [y, leaf.grad, *(g for g in gradients if g is not None)]))
    assert results[0][0] == results[1][0], f"{results[0][0]}, not {results[1][0]}"
    same(results[0][1], results[1][1], **GRADIENTS)


@probe("Module.to(dtype)", "to float64 and back; also with swap_tensors", each=KINDS + CELLS)
def to_dtype(layers: Layers, kind: str) -> None:
    for swap in (False, True):
        layer, twin, x = _pair(layers, kind)
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            for module in (layer, twin):
                module.to(torch.float64)
            same(layer(x.double()), twin(x.double()), rtol=1e-12, atol=1e-12)
            for module in (layer, twin):
                module.float()
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


def _train_shared(module: Any, x: Tensor) -> None:
    torch.set_num_threads(1)
    trained(module, module, x)
    torch.optim.SGD(module.parameters(), 0.1).step()


@probe("share_memory", "a forked process makes a training step, the parent has its weights", each=KINDS)
def share_memory(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    layer.share_memory()
    assert all(p.is_shared() for p in layer.parameters())
    process = torch.multiprocessing.get_context("fork").Process(target=_train_shared, args=(layer, x))
    process.start()
    process.join(60)
    assert process.exitcode == 0, f"exit status {process.exitcode}"
    _train_shared(twin, x)
    same(list(layer.parameters()), list(twin.parameters()), **GRADIENTS)
    same(layer(x), twin(x), **GRADIENTS)


@probe("optimizers, foreach and fused", "three steps of each against torch.nn's layer", each=KINDS + CELLS)
def optimizers(layers: Layers, kind: str) -> None:
    makers: tuple[Any, ...] = (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
    for maker in makers:
        for how in ({"fused": True}, {"foreach": True}, {}):
            layer, twin, x = _pair(layers, kind)
            for module in (layer, twin):
                optimizer = maker(module.parameters(), 0.01, **how)
                for _ in range(3):
                    trained(module, module, x)
                    optimizer.step()
            same(list(layer.parameters()), list(twin.parameters()), **GRADIENTS)


@probe("clip_grad_norm_ and clip_grad_value_", "norm and clipped gradients", each=KINDS + CELLS)
def clip_grad(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    results = []
    for module in (layer, twin):
        trained(module, module, x)
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        nn.utils.clip_grad_value_(module.parameters(), 0.01)
        results.append([norm, *(p.grad for p in module.parameters())])
    same(*results, **GRADIENTS)


_QUANTISED = "left as it is: torch.ao, deprecated, chooses by exact type; give it rnnfused.to_torch(model)"


def _quantised(model: Any, module: Any, exact: Any, x: Tensor) -> None:
    name = type(module).__module__
    assert name.startswith("torch.ao."), f"left as it was: {name}.{type(module).__name__} (to_torch first)"
    # Weights of 8 bits: a step of their range over 256, in a sum of a few terms and steps.
    same(flat(model(x))[:1], flat(exact(x))[:1], rtol=0, atol=0.05)


@probe(
    "quantize_dynamic",
    "torch.ao.quantization, layers named by class; the layer is quantised",
    each=KINDS + CELLS,
    by_design=_QUANTISED,
    refusal="left as it was: rnnfused",
)
def quantize_dynamic(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    model = nn.Sequential(layer).eval()
    wanted = {getattr(nn, kind), getattr(layers, kind), nn.Linear}
    quantised = torch.ao.quantization.quantize_dynamic(model, wanted)
    _quantised(quantised, quantised[0], twin, x)


@probe(
    "quantisation in FX graph mode",
    "prepare_fx and convert_fx, dynamic; the layer is quantised",
    each=KINDS + CELLS,
    by_design=_QUANTISED,
    refusal="left as it was: rnnfused",
)
def quantize_fx(layers: Layers, kind: str) -> None:
    from torch.ao.quantization import QConfigMapping, default_dynamic_qconfig
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    layer, twin, x = _pair(layers, kind)
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    model = convert_fx(prepare_fx(nn.Sequential(layer).eval(), mapping, (x,)))
    _quantised(model, model.get_submodule("0"), twin, x)
