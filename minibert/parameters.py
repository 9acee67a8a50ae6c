"""All parameters in one contiguous array, with a named view of each.

With one flat array, clipping is one dot product, an optimizer step two calls, and an all-reduce one call.
Parameters with weight decay come first, then biases and layer norms, so that each group is one slice. Gradients,
their accumulator and the optimizer's moments have the same layout.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from backends import Array, Backend, get_backend
from minibert.config import MiniBERTConfig
from minibert.random_bits import Stream, derive_key, random_bits

Shape = tuple[int, ...]

HEADS = ("mlm", "pooler", "next_sentence", "classifier")
"""The heads that a model can have. `next_sentence` and `classifier` read the pooler's output. A head's name is the
first word of the names of its parameters."""

PRETRAINING_HEADS = ("mlm", "pooler", "next_sentence")
CLASSIFICATION_HEADS = ("pooler", "classifier")


def head_of(name: str) -> str:
    """Return the first word of a parameter's name: the head, if the parameter belongs to one."""
    return name.split(".")[0]


def check_heads(heads: Iterable[str], config: MiniBERTConfig) -> tuple[str, ...]:
    """Return the heads in the order of `HEADS`.

    Raises:
        ValueError: a head is unknown, lacks the pooler that it reads, or is a classifier without labels.
    """
    wanted = set(heads)
    if unknown := wanted - set(HEADS):
        raise ValueError(f"unknown heads {', '.join(sorted(unknown))}: choose from {', '.join(HEADS)}")
    if "pooler" not in wanted and wanted & {"next_sentence", "classifier"}:
        raise ValueError("the heads next_sentence and classifier read the pooler's output: add the head pooler")
    if "classifier" in wanted and not config.labels:
        raise ValueError("a classifier needs the names of its classes: give them to the config as `labels`")
    return tuple(head for head in HEADS if head in wanted)


def _shapes(config: MiniBERTConfig, heads: tuple[str, ...]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Return the names and shapes of parameters with weight decay, and of the others, in the order of the flat array.

    A linear layer's weight is stored as (out, in) and applied as x @ weight.T, as in Hugging Face's files. The
    three projections of attention lie side by side, so that one (3H, H) view covers them.
    """
    h, i, v = config.hidden_size, config.intermediate_size, config.vocab_size
    linear: dict[str, Shape] = {}  # name -> shape of the weight
    layer_norms = ["embeddings.layer_norm"]
    for n in range(config.num_hidden_layers):
        layer = f"layers.{n}"
        linear |= {f"{layer}.attention.{name}": (h, h) for name in ("query", "key", "value", "output")}
        linear |= {f"{layer}.intermediate": (i, h), f"{layer}.output": (h, i)}
        layer_norms += [f"{layer}.attention.layer_norm", f"{layer}.output.layer_norm"]
    of_heads = {"mlm.dense": (h, h), "pooler": (h, h), "next_sentence": (2, h), "classifier": (len(config.labels), h)}
    linear |= {name: shape for name, shape in of_heads.items() if head_of(name) in heads}
    if "mlm" in heads:
        layer_norms += ["mlm.layer_norm"]

    decayed: dict[str, Shape] = {
        "token_embeddings": (v, h),  # also the MLM decoder's weight: the two are tied
        "position_embeddings": (config.max_position_embeddings, h),
        "token_type_embeddings": (config.type_vocab_size, h),
    }
    decayed |= {f"{name}.weight": shape for name, shape in linear.items()}
    others: dict[str, Shape] = {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    others |= {f"{name}.{part}": (h,) for name in layer_norms for part in ("weight", "bias")}
    if "mlm" in heads:
        others["mlm.bias"] = (v,)
    return decayed, others


@dataclass(frozen=True)
class Layout:
    """The place of each parameter in the flat array.

    Attributes:
        shapes: name -> shape, in the order of the array.
        offsets: name -> index of the first element in the flat array.
        decayed_size: number of elements with weight decay; they come first.
        size: number of all elements.
    """

    shapes: Mapping[str, Shape]
    offsets: Mapping[str, int]
    decayed_size: int
    size: int

    @classmethod
    def of(cls, config: MiniBERTConfig, heads: Iterable[str] = PRETRAINING_HEADS) -> Layout:
        """Return the layout of a model with these heads; see `check_heads` for the errors."""
        decayed, others = _shapes(config, check_heads(heads, config))
        shapes = {**decayed, **others}
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += math.prod(shape)
        return cls(shapes, offsets, sum(map(math.prod, decayed.values())), size)


class NamedArrays(Mapping[str, Array]):
    """A flat array and its named views; writing to a view writes to the array.

    Attributes:
        layout: where each parameter lies.
        flat: (size,), the array.
        decayed, others: the slices of `flat` with and without weight decay.
    """

    def __init__(self, layout: Layout, flat: Array) -> None:
        self.layout = layout
        self.flat = flat
        self.decayed = flat[: layout.decayed_size]
        self.others = flat[layout.decayed_size :]
        self._views = {name: self._view(name, shape) for name, shape in layout.shapes.items()}

    @classmethod
    def zeros(cls, layout: Layout, backend: Backend, dtype: Any) -> NamedArrays:
        """Return zeros on the backend's device."""
        return cls(layout, backend.xp.zeros(layout.size, dtype=dtype, device=backend.device))

    @classmethod
    def zeros_like(cls, other: NamedArrays) -> NamedArrays:
        """Return zeros with the layout, dtype and device of `other`."""
        return cls(other.layout, array_namespace(other.flat).zeros_like(other.flat))

    def _view(self, first_name: str, shape: Shape) -> Array:
        start = self.layout.offsets[first_name]
        xp = array_namespace(self.flat)
        return xp.reshape(self.flat[start : start + math.prod(shape)], shape, copy=False)

    def packed(self, prefix: str, parts: tuple[str, ...], kind: str) -> Array:
        """Return one view over neighbours of equal width, e.g. the (3H, H) weight of query, key and value.

        Args:
            prefix: e.g. "layers.0.attention".
            parts: neighbours in the order of the flat array, e.g. ("query", "key", "value").
            kind: "weight" or "bias".
        """
        first, *rest = self.layout.shapes[f"{prefix}.{parts[0]}.{kind}"]
        return self._view(f"{prefix}.{parts[0]}.{kind}", (first * len(parts), *rest))

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def initialise(
    parameters: NamedArrays, config: MiniBERTConfig, backend: Backend, seed: int, names: Collection[str] | None = None
) -> None:
    """Draw fresh parameters as BERT does: weights from a truncated normal, layer norms 1, biases 0.

    The normal has standard deviation `initializer_range`; values beyond two standard deviations are drawn again.
    Numbers are drawn on the host in float64 from the counter, then rounded and moved, so that every device and
    dtype starts from the same numbers.

    Args:
        parameters: written in place.
        config: the model's configuration.
        backend: where the parameters live.
        seed: decides the numbers.
        names: the parameters to draw; None for all. A parameter gets the same numbers whichever others are drawn.
    """
    host = get_backend("cpu").xp
    for number, (name, view) in enumerate(parameters.items()):
        if names is not None and name not in names:
            continue
        if name.endswith("layer_norm.weight"):
            view[...] = 1.0
        elif view.ndim == 1:  # biases
            view[...] = 0.0
        else:
            normal = _truncated_normal(host, math.prod(view.shape), seed, number)
            values = host.reshape(config.initializer_range * normal, view.shape)
            view[...] = backend.asarray(values, dtype=view.dtype)


def _truncated_normal(xp: Any, size: int, seed: int, parameter: int) -> Array:
    """Draw (size,) float64 standard normal numbers between -2 and 2.

    Box & Muller (1958) turn two uniform numbers into a normal one; those beyond 2 (1 in 22) are drawn again.
    """
    result = xp.zeros(size, dtype=xp.float64)
    pending = xp.arange(size, dtype=xp.int64)
    attempt = 0
    while pending.shape[0]:
        bits = random_bits(
            xp.astype(pending, xp.uint32), derive_key(seed, Stream.INITIALISATION, parameter, attempt), 2
        )
        uniform = (xp.astype(bits, xp.float64) + 0.5) / 2**32  # between 0 and 1, both excluded
        normal = xp.sqrt(-2.0 * xp.log(uniform[:, 0])) * xp.cos(2.0 * math.pi * uniform[:, 1])
        accepted = xp.abs(normal) <= 2.0
        result[pending[accepted]] = normal[accepted]
        pending = pending[~accepted]
        attempt += 1
    return result
