"""Fully sharded data parallelism (FSDP2): the weights of a model are divided among the processes.

A sharded model computes the gradients of the training steps. Each process stores a part of every weight, and
of its gradient and optimizer state. `fully_shard` of PyTorch gathers the weights of one layer at a time while
the layer is computed. Episodes are sampled with the whole model, which each process holds between the
training steps.
"""

import copy
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_reinforce.errors import InputError, RunStoppedError
from llm_reinforce.policy.log_probs import find_batching
from llm_reinforce.policy.row_trial import record_scoring_batching

_sharded: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


class ShardedModel:
    """A copy of a model whose weights are divided among the processes.

    Call `load` before the copy is used. The methods exchange weights with the other processes, so all
    processes must call them.

    Args:
        whole: the model to copy.
        device: device of the copy. If the model is still on the CPU, the copy is made on the CPU and moved to
            the device layer by layer.
        layer_classes: class names of modules, such as layers. The weights of one such module are gathered at
            a time. Empty: the classes in the model's list `_no_split_modules`, which usually are its layers.
        reshard_after_forward: remove the gathered weights of a layer after its forward pass, and gather them
            again in the backward pass.

    Attributes:
        module: the sharded copy.
        whole: the model that was copied.

    Raises:
        InputError: if PyTorch cannot shard the model, if the model has no layers of the given classes, or if
            layers that are gathered separately share a weight.
    """

    def __init__(
        self,
        whole: nn.Module,
        device: torch.device,
        *,
        layer_classes: Sequence[str] = (),
        reshard_after_forward: bool = True,
    ) -> None:
        # imported here, because these imports take a second
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        _check_weights(whole)
        self.whole, self.module = whole, copy.deepcopy(whole)
        layers = _layers(self.module, layer_classes)
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for parameter in self.module.parameters():
            parameter.data = parameter.data.contiguous()
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
        fully_shard(self.module, mesh=mesh)
        _check_shared_weights(whole, self.module)
        # recorded without a trial, because trial passes of the copy would need all processes at once
        record_scoring_batching(self.module, find_batching(whole))
        _sharded.add(self.module)

    @torch.no_grad()
    def load(self) -> None:
        """Copy the weights of the whole model, which must be equal in all processes, to the shards."""
        for shard, weight in zip(self.module.parameters(), self.whole.parameters(), strict=True):
            shard.copy_(split_like(weight, shard))
        for own, buffer in zip(self.module.buffers(), self.whole.buffers(), strict=True):
            own.copy_(buffer)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights of the shards to the whole model."""
        for shard, weight in zip(self.module.parameters(), self.whole.parameters(), strict=True):
            weight.data = whole_tensor(shard.detach())

    def gathered_sizes(self) -> tuple[int, int]:
        """Return the size of the weights outside the layers, and the size of the largest layer, in bytes.

        Weights outside the layers, such as the embedding, are gathered for a whole pass through the model.
        """
        from torch.distributed.fsdp import FSDPModule

        groups = [module for module in self.module.modules() if isinstance(module, FSDPModule)]
        sizes, seen = [], set()
        for group in reversed(groups):  # inner groups come first, the whole model last
            own = [weight for weight in group.parameters() if weight not in seen]
            seen |= {*own}
            sizes.append(sum(weight.numel() * weight.dtype.itemsize for weight in own))
        return sizes[-1], max(sizes[:-1], default=0)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Free the memory of the whole model within the context, and refresh the model afterwards.

        After an error other than `RunStoppedError`, the whole model remains without weights. Such an error
        may have occurred in this process only, and gathering the weights would wait for the other processes.
        """
        for weight in self.whole.parameters():
            weight.data = weight.data.new_empty(0)
        try:
            yield
        except RunStoppedError:  # all processes raise this error
            self.refresh()
            raise
        self.refresh()


class GatheredState:
    """The state of the optimizer of a sharded model, gathered from all processes.

    All processes must create this object. Only the first process keeps the tensors.

    Args:
        optimizer: the optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        own = optimizer.state_dict()
        is_kept = torch.distributed.get_rank() == 0
        gathered: dict[int, dict[str, Any]] = {}
        for index, values in own["state"].items():
            for name, value in values.items():
                whole = whole_tensor(torch.as_tensor(value))
                if is_kept:
                    gathered.setdefault(index, {})[name] = whole.cpu()
        self._state = {**own, "state": gathered}

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the format of the optimizer of a model that is not sharded."""
        return self._state


def is_sharded(model: nn.Module) -> bool:
    """Return True if the model is the sharded copy of a `ShardedModel`."""
    return model in _sharded


def local_tensor(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process holds. Other tensors are returned unchanged."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def whole_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor from all processes. Other tensors are returned unchanged."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def split_like(tensor: Tensor, parameter: Any) -> Tensor:
    """Divide a tensor among the processes in the same way as a parameter of the same shape.

    The tensor must be equal in all processes. It is returned unchanged if the parameter is not sharded. A
    tensor with another shape than the parameter is also returned unchanged; an example is the step count in
    the state of an optimizer.
    """
    if not hasattr(parameter, "device_mesh") or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.detach().to(parameter.device)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _check_weights(model: nn.Module) -> None:
    """Check that PyTorch can divide the weights of a model.

    Raises:
        InputError: if a weight has no dimensions or is quantized, or if the trained weights have different
            data types.
    """
    for name, weight in model.named_parameters():
        if weight.ndim == 0 or not weight.is_floating_point():
            kind = "is quantized" if weight.ndim else "has no dimensions"
            raise InputError(
                f"policy: the weight {name} {kind}, so FSDP cannot divide it among the processes; start the "
                "processes without FSDP"
            )
    dtypes = {str(weight.dtype) for weight in model.parameters() if weight.requires_grad}
    if len(dtypes) > 1:
        raise InputError(
            f"policy: the trained weights have several data types ({', '.join(sorted(dtypes))}), which FSDP "
            "does not support; convert the model to one data type, or start the processes without FSDP"
        )


def _check_shared_weights(whole: nn.Module, sharded: nn.Module) -> None:
    """Check that each weight that several layers share is still shared in the sharded copy.

    Otherwise, the copies of the weight would be trained separately.

    Raises:
        InputError: if a weight is not shared any more.
    """
    copies: dict[int, nn.Parameter] = {}
    own, others = (model.named_parameters(remove_duplicate=False) for model in (whole, sharded))
    for (name, weight), (_, copied) in zip(own, others, strict=True):
        if copies.setdefault(id(weight), copied) is not copied:
            raise InputError(
                f"policy: the weight {name} is shared with a layer that FSDP gathers separately "
                "(fsdp_transformer_layer_cls_to_wrap); remove this setting, or name only classes whose "
                "weights are not shared, such as the layers of the transformer"
            )


def _layers(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return the modules of the named classes, inner modules before the modules that contain them.

    If no names are given, the classes in `_no_split_modules` of the model are used.

    Raises:
        InputError: if the model has no module of a class in `names`.
    """
    default: Any = getattr(model, "_no_split_modules", None)
    wanted = set(names or default or ())
    # an inner module has to be sharded before the module that contains it
    found = [module for module in reversed([*model.modules()]) if type(module).__name__ in wanted]
    if missing := sorted(set(names) - {type(module).__name__ for module in found}):
        raise InputError(
            f"fsdp_transformer_layer_cls_to_wrap names {', '.join(missing)}, but the policy has no module of "
            f"this class; remove this setting, or name a class of the policy, such as "
            f"{', '.join(sorted(default or ())) or type(model).__name__}"
        )
    return found
