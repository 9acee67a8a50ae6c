"""Check in seconds that Mini-BERT works here: build a small model, run it forward and backward, and let it learn.

    python scripts/simple_test.py [--device cpu|cuda|cuda:N|torch]

The script prints a tick for every step that works. At the first step that does not, it stops with exit status 1.
The full test suite is `pytest`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

from backends import BackendError, get_backend
from minibert import AdamW, GradientAccumulator, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.commands.parser import Parser, add_option
from minibert.options import DEVICE

CONFIG = MiniBERTConfig.preset("tiny", vocab_size=500, max_position_embeddings=32)
TICK, CROSS = ("✓", "✗") if "utf" in (sys.stdout.encoding or "").lower() else ("ok", "FAILED")


def expect(condition: object, otherwise: str) -> None:
    """Raise AssertionError with that message if the condition is false; unlike assert, also under `python -O`."""
    if not condition:
        raise AssertionError(otherwise)


class SimpleTest:
    """The steps of the test, in order; each step uses what the steps before it computed.

    Args:
        device: a name that `get_backend` knows.
    """

    def __init__(self, device: str) -> None:
        self.backend = get_backend(device)
        random = np.random.default_rng(0)
        self.ids = random.integers(1, CONFIG.vocab_size, (4, 16))
        self.mask = np.ones_like(self.ids)
        self.mask[1, 12:] = self.mask[3, 8:] = 0
        predicted = (random.random(self.ids.shape) < 0.3) & (self.mask == 1)
        self.labels = np.where(predicted, self.ids, -100)
        self.predictions = int(predicted.sum())

    def build(self) -> str:
        """A model can be built."""
        self.model = MiniBERT(CONFIG, backend=self.backend)
        flat = self.model.parameters.flat
        return f"{len(self.model.parameters)} parameters, {flat.shape[0]:,} numbers of {flat.dtype}"

    def go_forward(self) -> str:
        """The forward pass gives finite logits, and no attention to padding."""
        logits, self.cache = self.model.forward(self.ids, self.mask)
        expect(logits.shape == (*self.ids.shape, CONFIG.vocab_size), f"the logits have the shape {logits.shape}")
        expect(np.all(np.isfinite(self.backend.to_numpy(logits))), "some logits are infinite or NaN")
        weights = self.backend.to_numpy(self.cache.layers[0].attention_weights)
        padding = weights * (self.mask == 0)[:, None, None, :]
        expect(not np.any(padding), f"padding gets an attention weight of {padding.max()}")
        return f"logits {tuple(logits.shape)}, attention weights {weights.shape}"

    def go_backward(self) -> str:
        """The backward pass gives a gradient for every parameter; the loss is close to that of guessing."""
        self.gradients = MiniBERTGradients(self.model)
        self.loss = float(self.gradients.backward(self.cache, self.labels))
        guessing = float(np.log(CONFIG.vocab_size))
        expect(abs(self.loss - guessing) < 0.5, f"the loss is {self.loss}; guessing would give {guessing}")
        flat = self.backend.to_numpy(self.gradients.gradients.flat)
        expect(np.all(np.isfinite(flat)), "some gradients are infinite or NaN")
        heads = ("pooler", "next_sentence")  # no next-sentence labels were given
        zero = [n for n, g in self.gradients.gradients.items() if not n.startswith(heads) and not bool((g != 0).any())]
        expect(not zero, f"the gradients of these parameters are all zero: {zero}")
        return f"loss {self.loss:.3f} (guessing: {guessing:.3f}), norm of the gradient {np.linalg.norm(flat):.3f}"

    def accumulate(self) -> str:
        """Two micro-batches accumulate to the gradient of the whole batch."""
        whole = np.array(self.backend.to_numpy(self.gradients.gradients.flat))
        self.accumulator = GradientAccumulator(self.model)
        for part in (slice(0, 1), slice(1, 4)):
            cache = self.model.forward(self.ids[part], self.mask[part])[1]
            self.gradients.backward(cache, self.labels[part])
            self.accumulator.add(self.gradients.gradients, weight=int((self.labels[part] >= 0).sum()))
        self.accumulator.average()
        error = np.max(np.abs(self.backend.to_numpy(self.accumulator.gradients.flat) - whole)) / np.max(np.abs(whole))
        expect(error < 1e-4, f"the gradients differ by {error:.1e}")
        return f"{self.predictions} predictions in two unequal parts, largest difference {error:.1e}"

    def learn(self) -> str:
        """One optimizer step lowers the loss."""
        norm = float(AdamW(self.model).step(self.accumulator.gradients, learning_rate=1e-3))
        cache = self.model.forward(self.ids, self.mask)[1]
        after = float(self.gradients.backward(cache, self.labels))
        expect(after < self.loss, f"the loss went from {self.loss} to {after}")
        return f"loss {self.loss:.3f} -> {after:.3f}, norm before clipping {norm:.3f}"


def run(what: str, step: Callable[[], str]) -> bool:
    """Run one step and print its result; return True if it worked."""
    start = time.perf_counter()
    try:
        found = step()
    except Exception as error:  # any error is reported together with its step
        print(f"{CROSS} {what}\n  {type(error).__name__}: {error}")
        return False
    print(f"{TICK} {what}\n  {found} ({time.perf_counter() - start:.2f} s)")
    return True


def main() -> int:
    """Run the steps until one fails; return the exit status."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    add_option(parser, DEVICE)
    try:
        arguments = parser.parse_args()
        test = SimpleTest(arguments.device)
    except (BackendError, ValueError) as error:
        parser.error(str(error))
    print(test.backend.description())
    steps = (test.build, test.go_forward, test.go_backward, test.accumulate, test.learn)
    return 0 if all(run((step.__doc__ or "").strip(), step) for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
