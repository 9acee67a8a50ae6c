"""BERT in one file, in NumPy (and SciPy's erf): forward pass, backward pass, AdamW and a training loop.

Read this file first, from top to bottom. It imports nothing from the rest of Mini-BERT, and leaves out everything that
is there for speed. It is the same BERT: `tests/model/test_reference.py` shows that logits, every gradient and twenty
optimizer steps agree with those of `MiniBERT`.

    OPENBLAS_NUM_THREADS=1 python -m minibert.reference   # trains a BERT on this very file, in about a minute

Two conventions carry the whole file:

- `dx` is the gradient of the loss with respect to `x`, and has the shape of `x`.
- `f_forward` computes y; `f_backward` stands below it, receives `dy`, and returns `dx`. A comment in the backward
  names the formula that it undoes. `saved` is what a backward needs from its forward (in PyTorch: `ctx`).

`p` holds the parameters by name, `d` their gradients by the same names. Letters in the shapes: B sequences of
T tokens, N = B T rows (one per token), H hidden size, A attention heads of size D = H / A, I intermediate size,
V vocabulary. docs/gradients.md derives every formula; lesson 3 (notebooks/03_backward.ipynb) derives them step by step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import erf  # the one function of BERT that NumPy lacks

Array = Any  # a NumPy array
Parameters = dict[str, Array]
Dropout = Callable[[tuple[int, ...]], Any]

EPS = 1e-12  # keeps layer norm finite for a row of equal numbers
IGNORED = -100  # the label of a token that is not predicted


# --- the operations, each with its gradient -----------------------------------------------------------------------


def linear_forward(p: Parameters, name: str, x: Array) -> Array:
    """y = x weight^T + bias: (N, in) -> (N, out)."""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def linear_backward(p: Parameters, d: Parameters, name: str, dy: Array, x: Array) -> Array:
    """Write the gradients of weight and bias, and return dx (N, in)."""
    # y = x @ weight.T + bias
    d[f"{name}.weight"] = dy.T @ x  # (out, in): row n contributes dy[n] times x[n]
    d[f"{name}.bias"] = dy.sum(axis=0)  # the bias is added to every row, so its gradient is the sum over the rows
    return dy @ p[f"{name}.weight"]  # (N, in)


def gelu_forward(u: Array) -> Array:
    """y = u Phi(u), where Phi is the cumulative normal distribution (Hendrycks & Gimpel 2016)."""
    return u * (0.5 + 0.5 * erf(u / math.sqrt(2.0)))


def gelu_backward(dy: Array, u: Array) -> Array:
    """Return du."""
    # y = u * cumulative; by the product rule, with density for the derivative of cumulative:
    cumulative = 0.5 + 0.5 * erf(u / math.sqrt(2.0))
    density = np.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)
    return dy * (cumulative + u * density)


def softmax_forward(x: Array) -> Array:
    """y = exp(x) / sum(exp(x)) along the last axis.

    Subtracting the maximum changes nothing, since it cancels, but no exponential can overflow. A score of minus
    infinity gives a weight of exactly 0.
    """
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def softmax_backward(dy: Array, y: Array) -> Array:
    """Return dx. It needs only y, not x."""
    # dy_j / dx_i = y_j (delta_ij - y_i); times dy_j, summed over j:
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def layer_norm_forward(p: Parameters, name: str, x: Array) -> tuple[Array, tuple[Array, Array]]:
    """y = n weight + bias, where n is the row with its mean removed and divided by its deviation (Ba et al. 2016)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    inverse_deviation = 1.0 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + EPS)  # (N, 1)
    n = centred * inverse_deviation  # (N, H)
    return n * p[f"{name}.weight"] + p[f"{name}.bias"], (n, inverse_deviation)


def layer_norm_backward(p: Parameters, d: Parameters, name: str, dy: Array, saved: tuple[Array, Array]) -> Array:
    """Write the gradients of weight and bias, and return dx (N, H)."""
    n, inverse_deviation = saved
    # y = n * weight + bias
    d[f"{name}.weight"] = (dy * n).sum(axis=0)
    d[f"{name}.bias"] = dy.sum(axis=0)
    dn = dy * p[f"{name}.weight"]
    # n = (x - mean) * inverse_deviation: shifting a row changes nothing, so the gradient has no mean; stretching a row
    # changes nothing, so the gradient has no part along n
    dn_mean = dn.mean(axis=-1, keepdims=True)
    dn_n_mean = (dn * n).mean(axis=-1, keepdims=True)
    return (dn - dn_mean - n * dn_n_mean) * inverse_deviation


def no_dropout(shape: tuple[int, ...]) -> float:
    """A dropout mask that keeps everything: for evaluation."""
    return 1.0


def dropout(random: np.random.Generator, probability: float) -> Dropout:
    """Return a function that draws dropout masks: 0 with this probability, else 1 / (1 - probability), mean 1.

    y = x * mask, so dx = dy * mask: the backward pass needs the same mask again.
    """
    return lambda shape: (random.random(shape) >= probability) / (1.0 - probability)


# --- attention ----------------------------------------------------------------------------------------------------


def split_heads(x: Array, batch: int, heads: int) -> Array:
    """Cut rows (N, H) into attention heads (B, A, T, D)."""
    return x.reshape(batch, -1, heads, x.shape[1] // heads).transpose(0, 2, 1, 3)


def merge_heads(x: Array) -> Array:
    """Turn (B, A, T, D) into rows (N, H): the inverse of `split_heads`."""
    batch, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch * length, heads * size)


def attention_forward(
    queries: Array, keys: Array, values: Array, attention_mask: Array, heads: int, drop: Dropout
) -> tuple[Array, tuple[Any, ...]]:
    """context = dropout(softmax(q k^T / sqrt(D) + mask)) v, for every sequence and head (Vaswani et al. 2017, eq. 1).

    The mask is added to the scores, before the softmax: 0 for a token, minus infinity for padding. So padding gets a
    weight of exactly 0, and the weights of the tokens still sum to 1. (Each sequence must have a token, else its
    softmax is 0/0. The library's `stable_softmax` gives zeros then.)
    """
    q, k, v = (split_heads(x, len(attention_mask), heads) for x in (queries, keys, values))  # (B, A, T, D) each
    mask = np.where(attention_mask == 1, 0.0, -np.inf)[:, None, None, :]  # (B, 1, 1, T): for all heads and queries
    scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[3]) + mask  # (B, A, T queries, T keys)
    weights = softmax_forward(scores)
    weights_mask = drop(weights.shape)
    context = merge_heads((weights * weights_mask) @ v)  # (N, H)
    return context, (q, k, v, weights, weights_mask)


def attention_backward(dcontext: Array, saved: tuple[Any, ...]) -> tuple[Array, Array, Array]:
    """Return dqueries, dkeys and dvalues, each (N, H)."""
    q, k, v, weights, weights_mask = saved
    dc = split_heads(dcontext, q.shape[0], q.shape[1])  # (B, A, T, D)
    # c = (weights * weights_mask) @ v
    dv = (weights * weights_mask).swapaxes(2, 3) @ dc
    dweights = (dc @ v.swapaxes(2, 3)) * weights_mask  # (B, A, T, T)
    # weights = softmax(scores): where a weight is 0, dscores is 0, too, so no gradient flows to padding
    dscores = softmax_backward(dweights, weights)
    # scores = q @ k^T / sqrt(D) + mask: the mask is a constant
    dqk = dscores / math.sqrt(q.shape[3])
    dq, dk = dqk @ k, dqk.swapaxes(2, 3) @ q
    return merge_heads(dq), merge_heads(dk), merge_heads(dv)


# --- one encoder layer --------------------------------------------------------------------------------------------


def layer_forward(
    p: Parameters, name: str, x: Array, attention_mask: Array, heads: int, drop: Dropout
) -> tuple[Array, tuple[Any, ...]]:
    """Compute attention, then feed-forward; each is added to its input (the residual) and normalised. x, y: (N, H)."""
    queries, keys, values = (linear_forward(p, f"{name}.attention.{role}", x) for role in ("query", "key", "value"))
    context, attention = attention_forward(queries, keys, values, attention_mask, heads, drop)
    mask_1 = drop(x.shape)
    attended, norm_1 = layer_norm_forward(
        p, f"{name}.attention.layer_norm", x + mask_1 * linear_forward(p, f"{name}.attention.output", context)
    )
    u = linear_forward(p, f"{name}.intermediate", attended)  # (N, I)
    activated = gelu_forward(u)
    mask_2 = drop(x.shape)
    y, norm_2 = layer_norm_forward(
        p, f"{name}.output.layer_norm", attended + mask_2 * linear_forward(p, f"{name}.output", activated)
    )
    return y, (x, attention, context, mask_1, norm_1, attended, u, activated, mask_2, norm_2)


def layer_backward(p: Parameters, d: Parameters, name: str, dy: Array, saved: tuple[Any, ...]) -> Array:
    """Write the gradients of the layer's parameters, and return dx (N, H)."""
    x, attention, context, mask_1, norm_1, attended, u, activated, mask_2, norm_2 = saved
    # y = layer_norm(attended + mask_2 * output(activated)): the sum passes dtotal to both of its terms
    dtotal = layer_norm_backward(p, d, f"{name}.output.layer_norm", dy, norm_2)
    dactivated = linear_backward(p, d, f"{name}.output", dtotal * mask_2, activated)  # (N, I)
    # activated = gelu(u), u = intermediate(attended); attended is used twice, so its two gradients are added
    du = gelu_backward(dactivated, u)
    dattended = dtotal + linear_backward(p, d, f"{name}.intermediate", du, attended)  # (N, H)
    # attended = layer_norm(x + mask_1 * attention.output(context))
    dtotal = layer_norm_backward(p, d, f"{name}.attention.layer_norm", dattended, norm_1)
    dcontext = linear_backward(p, d, f"{name}.attention.output", dtotal * mask_1, context)
    # context = attention(queries, keys, values), all three linear in x; so x is used four times
    dx = dtotal
    for role, drole in zip(("query", "key", "value"), attention_backward(dcontext, attention), strict=True):
        dx = dx + linear_backward(p, d, f"{name}.attention.{role}", drole, x)
    return dx


# --- the whole model ----------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """The numbers that define a BERT."""

    vocabulary: int
    positions: int
    hidden: int
    layers: int
    heads: int
    intermediate: int


class Batch(NamedTuple):
    """B sequences of T tokens, and what is to be predicted."""

    input_ids: Array  # (B, T), with some tokens replaced by [MASK]
    attention_mask: Array  # (B, T): 1 for a token, 0 for padding
    token_type_ids: Array  # (B, T): 0 in the first segment, 1 in the second
    labels: Array  # (B, T): the true id of a masked token, IGNORED elsewhere
    next_sentence_labels: Array  # (B,): 0 if the second segment follows the first, 1 if not, or IGNORED


def initialise(sizes: Sizes, random: np.random.Generator, deviation: float = 0.02) -> Parameters:
    """Draw fresh parameters: small random weights, layer norms 1, biases 0."""
    v, t, h, layers, _, i = sizes
    shapes: dict[str, tuple[int, ...]] = {
        "token_embeddings": (v, h),
        "position_embeddings": (t, h),
        "token_type_embeddings": (2, h),
    }
    linear = {"mlm.dense": (h, h), "pooler": (h, h), "next_sentence": (2, h)}
    for n in range(layers):
        linear |= {f"layers.{n}.attention.{role}": (h, h) for role in ("query", "key", "value", "output")}
        linear |= {f"layers.{n}.intermediate": (i, h), f"layers.{n}.output": (h, i)}
    shapes |= {f"{name}.weight": shape for name, shape in linear.items()}
    p = {name: deviation * random.standard_normal(shape) for name, shape in shapes.items()}
    p |= {f"{name}.bias": np.zeros(shape[0]) for name, shape in linear.items()}
    norms = ["embeddings.layer_norm", "mlm.layer_norm"]
    norms += [f"layers.{n}.{part}.layer_norm" for n in range(layers) for part in ("attention", "output")]
    for name in norms:
        p |= {f"{name}.weight": np.ones(h), f"{name}.bias": np.zeros(h)}
    return p | {"mlm.bias": np.zeros(v)}


def row_ids(batch: Batch) -> dict[str, Array]:
    """Return, for each of the three embedding tables, the row that each token looks up: (N,)."""
    count, length = batch.input_ids.shape
    return {
        "token_embeddings": batch.input_ids.reshape(-1),
        "position_embeddings": np.tile(np.arange(length), count),
        "token_type_embeddings": batch.token_type_ids.reshape(-1),
    }


def forward(
    p: Parameters, sizes: Sizes, batch: Batch, drop: Dropout = no_dropout
) -> tuple[Array, Array, tuple[Any, ...]]:
    """Return the logits of every token (N, V) and of the next sentence (B, 2), and what the backward pass needs."""
    count, length = batch.input_ids.shape
    # embeddings: three look-ups, added
    total = sum(p[table][ids] for table, ids in row_ids(batch).items())  # (N, H)
    normalised, embeddings_norm = layer_norm_forward(p, "embeddings.layer_norm", total)
    embeddings_mask = drop(normalised.shape)
    hidden = normalised * embeddings_mask
    # the encoder
    layers = []
    for n in range(sizes.layers):
        hidden, layer = layer_forward(p, f"layers.{n}", hidden, batch.attention_mask, sizes.heads, drop)
        layers.append(layer)
    # masked-language-model head; the decoder's weight is the table of token embeddings again ("tied")
    u = linear_forward(p, "mlm.dense", hidden)
    decoded, mlm_norm = layer_norm_forward(p, "mlm.layer_norm", gelu_forward(u))
    logits = decoded @ p["token_embeddings"].T + p["mlm.bias"]  # (N, V)
    # next-sentence head: it reads the first token of every sequence, [CLS]
    first = hidden.reshape(count, length, -1)[:, 0]  # (B, H)
    pooled = np.tanh(linear_forward(p, "pooler", first))
    next_sentence_logits = linear_forward(p, "next_sentence", pooled)  # (B, 2)
    saved = (embeddings_norm, embeddings_mask, layers, hidden, u, mlm_norm, decoded, pooled)
    return logits, next_sentence_logits, saved


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean of -log softmax(logits)[label] over the rows that have a label, and dlogits.

    The gradient is the softmax itself, minus 1 at the label. Each row of it sums to zero.
    """
    labelled = np.flatnonzero(labels >= 0)
    shifted = logits[labelled] - logits[labelled].max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    number, place = max(len(labelled), 1), (np.arange(len(labelled)), labels[labelled])
    gradient = np.exp(log_probabilities)
    gradient[place] -= 1.0
    dlogits = np.zeros_like(logits)
    dlogits[labelled] = gradient / number
    return float(-log_probabilities[place].sum() / number), dlogits


def backward(p: Parameters, sizes: Sizes, batch: Batch, drop: Dropout = no_dropout) -> tuple[float, Parameters]:
    """Return the loss of a batch, and its gradient with respect to every parameter."""
    logits, next_sentence_logits, saved = forward(p, sizes, batch, drop)
    embeddings_norm, embeddings_mask, layers, hidden, u, mlm_norm, decoded, pooled = saved
    count, length = batch.input_ids.shape
    first = hidden.reshape(count, length, -1)[:, 0]
    d: Parameters = {}
    mlm_loss, dlogits = cross_entropy(logits, batch.labels.reshape(-1))
    next_sentence_loss, dnext_sentence_logits = cross_entropy(next_sentence_logits, batch.next_sentence_labels)
    # logits = decoded @ token_embeddings.T + mlm.bias: the first of two parts of the table's gradient
    d["token_embeddings"] = dlogits.T @ decoded  # (V, H)
    d["mlm.bias"] = dlogits.sum(axis=0)
    dactivated = layer_norm_backward(p, d, "mlm.layer_norm", dlogits @ p["token_embeddings"], mlm_norm)
    dhidden = linear_backward(p, d, "mlm.dense", gelu_backward(dactivated, u), hidden)  # (N, H)
    # pooled = tanh(pooler(first)), and tanh' = 1 - tanh^2; first is a view of hidden, so its gradient is added there
    dpooled = linear_backward(p, d, "next_sentence", dnext_sentence_logits, pooled)
    dfirst = linear_backward(p, d, "pooler", dpooled * (1.0 - pooled * pooled), first)
    dhidden.reshape(count, length, -1)[:, 0] += dfirst
    # the encoder, from the last layer to the first
    for n in reversed(range(sizes.layers)):
        dhidden = layer_backward(p, d, f"layers.{n}", dhidden, layers[n])
    # total = the sum of three look-ups: each row of dtotal goes back to the rows that it came from. A token that occurs
    # twice receives both gradients: np.add.at adds them, d[table][ids] += dtotal would keep only one
    dtotal = layer_norm_backward(p, d, "embeddings.layer_norm", dhidden * embeddings_mask, embeddings_norm)
    for table, ids in row_ids(batch).items():
        d.setdefault(table, np.zeros_like(p[table]))
        np.add.at(d[table], ids, dtotal)
    return mlm_loss + next_sentence_loss, d


# --- training -----------------------------------------------------------------------------------------------------


def adamw_step(p: Parameters, d: Parameters, first: Parameters, second: Parameters, step: int, rate: float) -> None:
    """Clip the gradients to a norm of 1, and take AdamW step number 1, 2, ... in place (Loshchilov & Hutter 2017)."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-6
    norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in d.values()))
    for name in p:
        gradient = d[name] * min(1.0, 1.0 / (norm + 1e-6))
        first[name] = beta1 * first[name] + (1.0 - beta1) * gradient
        second[name] = beta2 * second[name] + (1.0 - beta2) * gradient * gradient
        # both moments start at zero, and are too small at first by these factors
        mean, square = first[name] / (1.0 - beta1**step), second[name] / (1.0 - beta2**step)
        weight_decay = 0.0 if name.endswith((".bias", "layer_norm.weight")) else 0.01
        p[name] = p[name] * (1.0 - rate * weight_decay) - rate * mean / (np.sqrt(square) + epsilon)


def mask_tokens(ids: Array, random: np.random.Generator, mask_id: int, specials: int, vocabulary: int) -> Batch:
    """Choose 15% of the tokens: 80% of them become [MASK], 10% a random token, 10% stay (Devlin et al. 2018, 3.1)."""
    chosen = (random.random(ids.shape) < 0.15) & (ids >= specials)
    how, anything = random.random(ids.shape), random.integers(specials, vocabulary, ids.shape)
    replaced = np.where(how < 0.8, mask_id, np.where(how < 0.9, anything, ids))
    nothing = np.full(len(ids), IGNORED)  # no next-sentence labels
    return Batch(np.where(chosen, replaced, ids), ids * 0 + 1, ids * 0, np.where(chosen, ids, IGNORED), nothing)


def train(p: Parameters, sizes: Sizes, batches: Callable[[int], Batch], steps: int, peak: float, drop: Dropout) -> None:
    """Train in place. The learning rate rises to its peak in the first tenth of the steps, then falls to zero."""
    first, second = ({name: np.zeros_like(array) for name, array in p.items()} for _ in range(2))
    for step in range(1, steps + 1):
        loss, d = backward(p, sizes, batches(step), drop)
        rate = peak * min(step / (0.1 * steps), (steps - step) / (0.9 * steps))
        adamw_step(p, d, first, second, step, rate)
        if step % 50 == 0:
            print(f"step {step:4d}  loss {loss:.3f}", flush=True)


def main() -> None:
    """Train a BERT on this file, and compare it with a guess by frequency alone (the unigram baseline)."""
    words = re.findall(r"\w+|[^\w\s]", Path(__file__).read_text(encoding="utf-8"))
    tokens = ["[CLS]", "[MASK]", *sorted(set(words))]
    number = {token: i for i, token in enumerate(tokens)}
    text = np.array([number[word] for word in words])
    frequencies = np.bincount(text) / len(text)
    baseline = -sum(f * math.log(f) for f in frequencies if f > 0.0)
    sizes = Sizes(vocabulary=len(tokens), positions=32, hidden=64, layers=2, heads=4, intermediate=256)
    random = np.random.default_rng(0)
    p = initialise(sizes, random, deviation=0.02 * math.sqrt(768 / sizes.hidden))  # 0.02 is for a hidden size of 768
    print(f"{len(text):,} tokens, {len(tokens)} different, {sum(a.size for a in p.values()):,} parameters")

    def batches(step: int) -> Batch:
        starts = random.integers(0, len(text) - 31, (16, 1))
        ids = np.concatenate([np.zeros_like(starts), text[starts + np.arange(31)]], axis=1)  # (B, T), [CLS] first
        return mask_tokens(ids, random, mask_id=1, specials=2, vocabulary=len(tokens))

    train(p, sizes, batches, steps=800, peak=3e-3, drop=no_dropout)  # it may learn this one text by heart
    fresh = [batches(0) for _ in range(20)]
    loss = sum(cross_entropy(forward(p, sizes, batch)[0], batch.labels.reshape(-1))[0] for batch in fresh) / len(fresh)
    print(f"loss {loss:.3f} nats; guessing by frequency alone {baseline:.3f}")


if __name__ == "__main__":
    main()
