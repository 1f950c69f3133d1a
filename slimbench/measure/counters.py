"""FLOPs by watching a run: torch's FlopCounterMode, with the formulas it lacks.

FLOPs are 2 x multiply-accumulates of matrix products and attention. Elementwise work, norms, softmax,
sorting, gathers and copies are left out on purpose: they are named in FREE. An operation that is neither
counted nor free is an error that names it, because a count that silently misses one is worth nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from slimbench.errors import SlimbenchError

aten = torch.ops.aten

_MEMBER = re.compile(r"([^.\d][^.]*\.)+\d+")  # of a list of modules, wherever it stands: encoder.layers.0

# Pointwise operations and views are free too; torch says of each which it is.
FREE_BESIDES = """
    sum mean amax amin max min argmax argmin aminmax prod any all var std var_mean std_mean norm logsumexp
    linalg_vector_norm _softmax softmax _log_softmax log_softmax cumsum cumprod cummax cummin logcumsumexp
    native_layer_norm layer_norm native_group_norm group_norm rms_norm native_batch_norm batch_norm
    count_nonzero bincount histc equal floor_divide __and__ __or__ __xor__

    sort argsort topk kthvalue median msort unique _unique _unique2 unique_dim unique_consecutive
    searchsorted bucketize nonzero isin

    index index_select index_add index_copy index_put _index_put_impl _unsafe_index index_reduce index_fill
    gather scatter scatter_add scatter_reduce masked_select masked_scatter embedding take take_along_dim
    cat stack repeat repeat_interleave roll flip tril triu constant_pad_nd copy _to_copy to clone
    contiguous reshape flatten unflatten resize view _unsafe_view view_as_complex view_as_real complex
    polar type_as item _local_scalar_dense is_nonzero nan_to_num lift_fresh

    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros ones ones_like
    new_ones full full_like new_full arange linspace eye scalar_tensor fill zero randperm rand randn rand_like
    randn_like randint uniform normal bernoulli multinomial exponential random dropout

    size dim numel Int ScalarImplicit FloatImplicit IntImplicit Bool Float
"""
FREE = frozenset(FREE_BESIDES.split())


class UncountedError(SlimbenchError):
    """An operation that no formula counts and that is not free."""


@dataclass(frozen=True)
class Counted:
    """FLOPs of one run.

    parts       {module, as in `named_modules` of the encoder: FLOPs} for the encoder's outermost modules;
                "" holds what was done outside of all of them
    operations  {name of the operation: FLOPs}
    """

    parts: Mapping[str, int]
    operations: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())


def count(run: Callable[[], Any], prefix: str = "") -> Counted:
    """FLOPs of `run()`, inference or training.

    prefix  the encoder's name in the run's module tree, such as "Slim"; parts are named below it.
    Raises UncountedError.
    """
    with _Seen() as seen, FlopCounterMode(display=False, custom_mapping=_missing()) as counter:
        run()
    check_counted(
        {packet.__name__ for packet in seen.packets if packet not in counter.flop_registry}, "FlopCounterMode"
    )
    by_module = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    total = by_module.get("Global", 0)
    parts = outermost({name: flops for name, flops in by_module.items() if name != "Global"}, prefix)
    operations = {
        str(packet.__name__): flops for packet, flops in counter.get_flop_counts().get("Global", {}).items()
    }
    return Counted({"": total - sum(parts.values()), **parts}, operations)


def outermost(by_module: Mapping[str, int], prefix: str) -> dict[str, int]:
    """{part: FLOPs} of the modules right below `prefix`, and instead of a list of modules its members."""
    start = f"{prefix}." if prefix else ""
    below = {name.removeprefix(start): flops for name, flops in by_module.items() if name.startswith(start)}
    members = {name for name in below if _MEMBER.fullmatch(name)}
    above = {name[:at] for name in members for at, letter in enumerate(name) if letter == "."}
    return {
        name: flops
        for name, flops in below.items()
        if name in members or (name and "." not in name and name not in above)
    }


def check_counted(names: set[str], counter: str) -> None:
    """Raises UncountedError for the first of the operations `names` that is not free."""
    for name in sorted(names):
        if not is_free(name):
            raise UncountedError(
                f"{counter} has no formula for {name}, so the FLOPs would be too low; register one with "
                "torch.utils.flop_counter.register_flop_formula, or use operations that have one"
            )


def is_free(name: str) -> bool:
    """Whether the aten operation `name` is left out on purpose."""
    plain = name.rstrip("_")  # in place is the same work
    if name in FREE or plain in FREE:
        return True
    for candidate in (name, plain):
        packet = getattr(aten, candidate, None)
        if packet is None:
            continue
        for overload in (getattr(packet, name) for name in packet.overloads()):
            if torch.Tag.pointwise in overload.tags or _is_view(overload._schema):
                return True
    return False


def _is_view(schema: Any) -> bool:
    return any(out.alias_info is not None and not out.alias_info.is_write for out in schema.returns)


class _Seen(TorchDispatchMode):
    """Remembers which operations ran. Entered before FlopCounterMode it sees them decomposed."""

    def __init__(self) -> None:
        super().__init__()
        self.packets: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "aten":
            self.packets.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def _missing() -> dict[Any, Callable[..., int]]:
    """Formulas for operations that this torch does not count, from the shapes of their arguments."""

    def matrix_vector(matrix: Any, vector: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * prod(matrix)

    def added_matrix_vector(_bias: Any, matrix: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * prod(matrix)

    def attention(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * prod(q[:3]) * k[2] * (q[3] + v[3])

    def attention_backward(
        _grad: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any
    ) -> int:
        # Scores once more, then the gradients of v, of the weights, of q and of k.
        return 2 * prod(q[:3]) * k[2] * (3 * q[3] + 2 * v[3])

    def distances(a: Any, b: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * prod(a) * b[-2]

    formulas: dict[str, Callable[..., int]] = {
        "mv": matrix_vector,
        "dot": matrix_vector,
        "vdot": matrix_vector,
        "addmv": added_matrix_vector,
        "_euclidean_dist": distances,
        "_cdist_forward": distances,
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": attention_backward,
    }
    found = {getattr(aten, name): formula for name, formula in formulas.items()}
    return {packet: formula for packet, formula in found.items() if packet not in flop_registry}
