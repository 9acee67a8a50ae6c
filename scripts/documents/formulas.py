"""Return, for a formula of docs/gradients.md, links to the lines that compute it.

`FORMULAS` names for every formula the functions that compute it, each with a fragment of its line. A fragment that the
function no longer contains is an error, so no formula can lose its code unnoticed.
"""

from __future__ import annotations

from documents.files import ROOT
from documents.places import lines_of

_OPS, _NUMBA, _CUDA = "minibert/ops/", "backends/cpu/kernels/", "backends/cuda/kernels.cu"
_ATTENTION = "backends/cuda/attention.cu"
_MODEL, _GRADIENTS, _REFERENCE = "minibert/model.py", "minibert/gradients.py", "minibert/reference.py"
_OPTIMIZER, _BASE = "minibert/optimizer.py", "backends/base.py"

_WHERE = {  # the beginning of a path -> what stands there
    _OPS: "definition",
    _OPTIMIZER: "optimizer",
    _BASE: "shared by all twins",
    _MODEL: "forward pass",
    _GRADIENTS: "backward pass",
    "minibert/gradient_accumulator.py": "accumulator",
    _REFERENCE: "one-file reference",
    _NUMBA: "Numba",
    "backends/cpu/backend.py": "NumPy",
    "backends/cpu/twins.py": "NumPy",
    "backends/cuda/": "CUDA",
}

Place = tuple[str, str, str]  # file, function, fragment of the line

FORMULAS: dict[str, tuple[Place, ...]] = {
    "loss": (
        (_GRADIENTS, "MiniBERTGradients._cross_entropy", "backend.xp.sum(losses) * scale"),
        (_GRADIENTS, "MiniBERTGradients.backward", "self.masked_language_model_loss + self.next_sentence_loss"),
        (_REFERENCE, "backward", "return mlm_loss + next_sentence_loss"),
    ),
    "sums": (
        (_OPS + "accumulation.py", "add_scaled", "total += values"),
        (_CUDA, "add_scaled", "store(total, i,"),
    ),
    "weighted mean": (
        (_OPS + "accumulation.py", "add_scaled", "scaled *= weight"),
        (_CUDA, "add_scaled", "(real)weight * load"),
        ("minibert/gradient_accumulator.py", "GradientAccumulator.average", "1.0 / self.total_weight"),
    ),
    "cross-entropy sum": (
        (_OPS + "cross_entropy.py", "cross_entropy_forward", "exponential_sum ="),
        (_REFERENCE, "cross_entropy", "shifted = "),
        (_NUMBA + "cross_entropy.py", "_exponential_sum", "exponential_sum +="),
        (_CUDA, "exponential_sum_of_row", "exponential_sum +="),
    ),
    "cross-entropy": (
        (_OPS + "cross_entropy.py", "cross_entropy_forward", "losses = "),
        (_REFERENCE, "cross_entropy", "log_probabilities = "),
        (_NUMBA + "cross_entropy.py", "_forward", "np.log(exponential_sum)"),
        (_CUDA, "loss_of_row", "log(exponential_sum)"),
    ),
    "dlogits": (
        (_OPS + "cross_entropy.py", "cross_entropy_backward", "dlogits = (stable_softmax"),
        (_REFERENCE, "cross_entropy", "gradient[place] -= 1.0"),
        (_NUMBA + "cross_entropy.py", "_backward", "dlogits[i, labels[i]] -= scale"),
        (_CUDA, "cross_entropy_backward", "real dlogit ="),
    ),
    "linear": (
        (_OPS + "linear.py", "linear_backward_weight", "dweight[...] ="),
        (_OPS + "linear.py", "linear_backward_input", "dx = "),
        (_REFERENCE, "linear_backward", "dy.T @ x"),
        (_NUMBA + "linear.py", "linear_backward_weight", "multiply("),
        (_NUMBA + "linear.py", "linear_backward_input", "multiply("),
        ("backends/cuda/twins.py", "linear_backward_weight", "def "),
        ("backends/cuda/twins.py", "linear_backward_input", "def "),
    ),
    "look-up": (
        (_OPS + "embedding.py", "embedding_forward", "backend.xp.take"),
        (_REFERENCE, "forward", "total = sum("),
        (_NUMBA + "embedding.py", "_look_up_row", "first = "),
        (_CUDA, "embedding_forward", "real y_i ="),
    ),
    "tied decoder": (
        (_MODEL, "MiniBERT._masked_language_model_head", "logits = "),
        (_REFERENCE, "forward", "logits = decoded"),
    ),
    "scatter-add": (
        (_GRADIENTS, "MiniBERTGradients._masked_language_model_head", "dnormalised = "),
        (_OPS + "embedding.py", "embedding_backward", "backend.scatter_add"),
        (_REFERENCE, "backward", "np.add.at"),
        ("backends/cpu/backend.py", "NumpyBackend.scatter_add", "def "),
        (_NUMBA + "embedding.py", "_scatter", "add_row"),
        (_CUDA, "scatter_add_runs", "load(target, place) + sum"),
    ),
    "pruned queries": (
        (_GRADIENTS, "MiniBERTGradients._attention", "dquery_x = kernels.linear_backward"),
        (_GRADIENTS, "MiniBERTGradients._attention", "kernels.embedding_backward"),
    ),
    "activation": (
        (_OPS + "activations.py", "bias_gelu_backward", "dx = "),
        (_REFERENCE, "gelu_backward", "return dy *"),
        (_NUMBA + "activations.py", "_backward_row", "dy[j] *= derivative"),
        (_CUDA, "activation_backward", "real dx_i ="),
    ),
    "GELU's parts": (
        (_OPS + "activations.py", "bias_gelu_backward", "cumulative = "),
        (_OPS + "activations.py", "bias_gelu_backward", "density = "),
        (_REFERENCE, "gelu_backward", "cumulative = "),
        (_NUMBA + "elementary.py", "gelu_and_derivative", "cumulative, gaussian ="),
        (_CUDA, "Gelu", "erf("),
    ),
    "GELU": (
        (_OPS + "activations.py", "bias_gelu_forward", "return u * cumulative"),
        (_OPS + "activations.py", "bias_gelu_backward", "derivative = "),
        (_REFERENCE, "gelu_backward", "return dy *"),
        (_NUMBA + "elementary.py", "gelu_and_derivative", "return u * cumulative"),
        (_CUDA, "Gelu", "return cumulative_u + u"),
    ),
    "tanh GELU": (
        (_OPS + "activations.py", "bias_gelu_new_forward", "t = "),
        (_NUMBA + "elementary.py", "gelu_new", "def "),
        (_CUDA, "GeluNew", "real z ="),
    ),
    "tanh GELU's derivative": (
        (_OPS + "activations.py", "bias_gelu_new_backward", "derivative = 0.5"),
        (_NUMBA + "elementary.py", "gelu_new_and_derivative", "def "),
        (_CUDA, "GeluNew", "return (real)0.5 * (1 + t)"),
    ),
    "layer norm's statistics": (
        (_OPS + "layer_norm.py", "layer_norm_forward", "x_mean = "),
        (_OPS + "layer_norm.py", "layer_norm_forward", "inverse_deviation = "),
        (_REFERENCE, "layer_norm_forward", "inverse_deviation = "),
        (_NUMBA + "layer_norm.py", "_statistics", "return x_mean"),
        (_CUDA, "layer_norm_row", "real inverse_deviation ="),
    ),
    "layer norm": (
        (_OPS + "layer_norm.py", "layer_norm_forward", "n = "),
        (_REFERENCE, "layer_norm_forward", "n = "),
        (_NUMBA + "layer_norm.py", "_normalise_row", "n = "),
        (_CUDA, "layer_norm_row", "real n ="),
    ),
    "layer norm's parameters": (
        (_OPS + "layer_norm.py", "layer_norm_backward", "dweight[...] ="),
        (_OPS + "layer_norm.py", "layer_norm_backward", "dn = "),
        (_REFERENCE, "layer_norm_backward", "dn = "),
        (_NUMBA + "layer_norm.py", "_dn_means", "dweight[j] +="),
        (_CUDA, "layer_norm_backward_column", "dweight_sum +="),
    ),
    "layer norm's dx": (
        (_OPS + "layer_norm.py", "layer_norm_backward", "return (dn - dn_mean"),
        (_REFERENCE, "layer_norm_backward", "return (dn - dn_mean"),
        (_NUMBA + "layer_norm.py", "_dx_row", "dx[j] = (dn - dn_mean"),
        (_CUDA, "layer_norm_backward_row", "(dn - dn_mean"),
    ),
    "dropout": (
        (_OPS + "dropout.py", "dropout_backward", "return dropout_forward"),
        (_NUMBA + "dropout.py", "_drop_row", "y[j] = "),
        (_CUDA, "dropout", "extern"),
    ),
    "sub-layer": (
        (_OPS + "layer_norm.py", "dropout_add_layer_norm_forward", "total = "),
        (_REFERENCE, "layer_forward", "x + mask_1 *"),
        (_NUMBA + "layer_norm.py", "_dropped_total_row", "total[j] = "),
        (_CUDA, "dropout_add_layer_norm_forward", "store(total, i"),
    ),
    "sub-layer's gradient": (
        (_OPS + "layer_norm.py", "dropout_add_layer_norm_backward", "dresidual = "),
        (_OPS + "layer_norm.py", "dropout_add_layer_norm_backward", "dx = "),
        (_REFERENCE, "layer_backward", "dactivated = "),
        (_NUMBA + "layer_norm.py", "_drop_gradient_row", "dx_j = "),
        (_CUDA, "layer_norm_backward_row", "store(dx, i"),
    ),
    "softmax's sum": (
        (_OPS + "softmax.py", "stable_softmax", "maximum = "),
        (_OPS + "softmax.py", "stable_softmax", "inverse_sum = "),
        (_NUMBA + "attention.py", "_sum_row", "exponential_sum += exponentials"),
        (_ATTENTION, "attention_softmax_forward", "exponential_sum +="),
    ),
    "softmax": (
        (_OPS + "softmax.py", "stable_softmax", "return exponentials"),
        (_REFERENCE, "softmax_forward", "return exponentials"),
        (_NUMBA + "attention.py", "_weigh_row", "exponentials[j] *= scale"),
        (_ATTENTION, "attention_softmax_forward", "real weight ="),
    ),
    "softmax's dx": (
        (_OPS + "softmax.py", "softmax_backward", "return y * (dy"),
        (_REFERENCE, "softmax_backward", "return y * (dy"),
        (_NUMBA + "attention.py", "_query_key_gradient", "dweights[j] = "),
        (_ATTENTION, "attention_softmax_backward", "(load(dqk, i) - dweights_weights_sum)"),
    ),
    "scores": (
        (_OPS + "attention.py", "attention_weights", "scores = (q"),
        (_REFERENCE, "attention_forward", "scores = "),
        (_NUMBA + "attention.py", "_mask_row", "+ mask[j]"),
        (_ATTENTION, "attention_softmax_forward", "load(mask, column)"),
    ),
    "context": (
        (_OPS + "attention.py", "attention_forward", "c = dropped_weights @ v"),
        (_REFERENCE, "attention_forward", "context = merge_heads"),
        (_NUMBA + "attention.py", "_forward", "c = dropped_weights @ v"),
        ("backends/cuda/attention.py", "attention_forward", "def "),
    ),
    "dv and dweights": (
        (_OPS + "attention.py", "attention_backward", "dv = "),
        (_OPS + "attention.py", "attention_backward", "dweights = "),
        (_REFERENCE, "attention_backward", "dv = "),
        (_NUMBA + "attention.py", "_weights_again", "dweight = "),
        (_ATTENTION, "attention_softmax_backward", "dweight = keep"),
    ),
    "dscores": (
        (_OPS + "attention.py", "attention_backward", "dscores = "),
        (_REFERENCE, "attention_backward", "dscores = "),
        (_NUMBA + "attention.py", "_weights_again", "dweights_weights_sum += dweight"),
        (_ATTENTION, "attention_softmax_backward", "dweights_weights_sum += dweight"),
    ),
    "dq and dk": (
        (_OPS + "attention.py", "attention_backward", "dq = "),
        (_OPS + "attention.py", "attention_backward", "dk = "),
        (_REFERENCE, "attention_backward", "dq, dk = "),
        (_NUMBA + "attention.py", "_backward", "dq = dqk @ k"),
        ("backends/cuda/attention.py", "attention_backward", "def "),
    ),
    "clipping": (
        (_OPTIMIZER, "clipping_scale", "norm = "),
        (_OPTIMIZER, "clipping_scale", "return norm"),
        (_REFERENCE, "adamw_step", "gradient = "),
    ),
    "AdamW's factors": (
        (_BASE, "adamw_factors", "step_size="),
        (_REFERENCE, "adamw_step", "mean, square ="),
    ),
    "first moment": (
        (_OPS + "adamw.py", "adamw_update", "first_moment += "),
        (_REFERENCE, "adamw_step", "first[name] = "),
        ("backends/cpu/twins.py", "adamw_update", "m += scratch"),
        (_NUMBA + "adamw.py", "_update_block", "first = "),
        (_CUDA, "adamw_update", "real first ="),
    ),
    "second moment": (
        (_OPS + "adamw.py", "adamw_update", "second_moment += "),
        (_REFERENCE, "adamw_step", "second[name] = "),
        ("backends/cpu/twins.py", "adamw_update", "v += g"),
        (_NUMBA + "adamw.py", "_update_block", "second = "),
        (_CUDA, "adamw_update", "real second ="),
    ),
    "denominator": (
        (_OPS + "adamw.py", "adamw_update", "denominator = "),
        ("backends/cpu/twins.py", "adamw_update", "g += epsilon"),
        (_NUMBA + "adamw.py", "_update_block", "denominator = "),
        (_CUDA, "adamw_update", "real denominator ="),
    ),
    "update": (
        (_OPS + "adamw.py", "adamw_update", "parameters -= "),
        (_REFERENCE, "adamw_step", "p[name] = "),
        ("backends/cpu/twins.py", "adamw_update", "p -= g"),
        (_NUMBA + "adamw.py", "_update_block", "parameters[i] = "),
        (_CUDA, "adamw_update", "store(parameters, i"),
    ),
    "check": (("tests/support/checking.py", "gradient_error", "numeric = "),),
}


def line_of(place: Place) -> int:
    """Return the number of the first line of a function that contains a fragment.

    Raises:
        ValueError: the function does not exist, or does not contain the fragment.
    """
    name, function, fragment = place
    file = ROOT / name
    first, last = lines_of(file, function)
    lines = file.read_text(encoding="utf-8").splitlines()
    for number in range(first, last + 1):
        if fragment in lines[number - 1]:
            return number
    raise ValueError(f"{function} in {name} has no line with {fragment!r}: correct scripts/documents/formulas.py")


def code(formula: str) -> str:
    """Return links to the lines that compute a formula, grouped by where they stand."""
    links: dict[str, list[str]] = {}
    for place in FORMULAS[formula]:
        where = next((words for start, words in _WHERE.items() if place[0].startswith(start)), "test")
        number = line_of(place)
        links.setdefault(where, []).append(f"../{place[0]}#L{number}")
    parts = []
    for where, targets in links.items():
        first, *others = targets
        parts.append(", ".join([f"[{where}]({first})", *(f"[and]({other})" for other in others)]))
    return f"*In the code: {' · '.join(parts)}*"
