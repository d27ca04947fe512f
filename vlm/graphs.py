"""Graphs: a decoder's step, captured once on a GPU and replayed for every token.

A token takes dozens of kernels in each layer, most of them shorter than it takes to
launch them, so a GPU that is told one after the other mostly waits. A CUDA graph is
told at once, and does exactly what was captured: the same kernels, on the same
addresses. So the step has a fixed shape; what comes in (a token and its place) and what
goes out (logits, attention, the likeliest token) lies in tensors that stay where they
are. The model is the same that runs without it, with a cache of another kind.

What a capture needs is said in PyTorch's notes on CUDA graphs
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): some passes on a
stream beside the default one to warm up, no wait for the GPU within, and a memory pool
of the graph's own, which is what `torch.cuda.graph` makes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.cache import KVCache, StaticKV
from vlm.config import GemmaConfig
from vlm.paligemma import PaliGemma
from vlm.tap import LOOK_AWAY, Tap, Weights

BUCKET = 256  # capacities are multiples of it, so that few of them serve all
LIMIT = 1 << 30  # bytes
WARM_UP = 3  # passes before a capture, as PyTorch's notes have it

LOG = logging.getLogger(__name__)
# PyTorch allows one capture at a time in a process.
CAPTURING = threading.Lock()


class Graphs:
    """The steps of one model, each lent to one request at a time.

    Args:
        limit: bytes of all steps together; what the graphs work in is not counted.
        capture: where it is False, the same step runs uncaptured, on any device: to
            find out what a capture changes.
    """

    def __init__(
        self, model: PaliGemma, *, limit: int = LIMIT, capture: bool = True
    ) -> None:
        self.model = model
        self.limit = limit
        self.capture = capture
        self.idle: list[DecodeStep] = []  # the longest unused first
        self.lent: list[DecodeStep] = []
        self.refused: set[int] = set()  # capacities that could not be captured
        # Taken again by a thread that has it, when it happens to collect a request
        # that somebody left lying.
        self.lock = threading.RLock()

    @contextlib.contextmanager
    def lease(
        self, cache: KVCache, *, ahead: bool = False
    ) -> Iterator[DecodeStep | None]:
        """A step that goes on behind what a cache holds, as far as that has room.

        None where there is no such step: the model is not on one GPU alone, somebody
        hooks into it, the limit is reached, or a capture failed. Then the model itself
        is to be called.

        Args:
            ahead: whether the next token will be the likeliest, so that the step may
                go on with it before it is asked to.
        """
        step = self._take(cache)
        if step is None:
            yield None
            return
        try:
            step.begin(cache, ahead=ahead)
            yield step
        finally:
            step.end()
            with self.lock:
                self.lent.remove(step)
                self.idle.append(step)

    def _take(self, cache: KVCache) -> DecodeStep | None:
        addresses = self._addresses()
        if not addresses:
            return None
        capacity = -(-cache.capacity // BUCKET) * BUCKET
        with self.lock:
            # A graph reads where the weights were; they may have moved.
            self.idle = [step for step in self.idle if step.addresses == addresses]
            fitting = [step for step in self.idle if step.cache.capacity == capacity]
            step = fitting[-1] if fitting else self._made(cache, capacity, addresses)
            if step is not None:
                self.idle = [other for other in self.idle if other is not step]
                self.lent.append(step)
            return step

    def _made(
        self, cache: KVCache, capacity: int, addresses: tuple[int, ...]
    ) -> DecodeStep | None:
        size = step_bytes(self.model.config.decoder, cache, capacity)
        room = self.limit - sum(step.nbytes for step in self.lent) - size
        if room < 0 or capacity in self.refused:
            return None
        while sum(step.nbytes for step in self.idle) > room:
            self.idle.pop(0)
        how = {"addresses": addresses, "capture": self.capture}
        try:
            return DecodeStep(self.model, cache, capacity, **how)
        except RuntimeError:
            if not self.capture:
                raise
            # Whatever the GPU, its driver or its memory has against it: without a
            # graph the answer is the same.
            LOG.debug("no CUDA graph of %d positions", capacity, exc_info=True)
            self.refused.add(capacity)
            return None

    def _addresses(self) -> tuple[int, ...]:
        """Where the decoder's weights lie, or nothing where no graph could read them.

        A replay runs no Python: hooks would not be called, and accelerate's, which
        bring the weights of a model that is spread over several devices, are such.
        """
        model = self.model
        tensors = (*model.decoder.parameters(), *model.decoder.buffers())
        if self.capture:
            if {t.device.type for t in tensors} != {"cuda"}:
                return ()
            hooked = any(
                part._forward_hooks or part._forward_pre_hooks
                for part in model.modules()
            )
            spread = hasattr(model, "hf_device_map")
            if hooked or spread or len({t.device for t in tensors}) > 1:
                return ()
        return tuple(t.data_ptr() for t in tensors)


class DecodeStep:
    """A token in; logits, attention and the likeliest next token out.

    A step is given the next token and answers with logits, like the model. On a GPU it
    runs on a stream of its own, beside which the numbers of the step before are read:
    with `ahead` the next step is under way by then, with the token that the GPU itself
    found likeliest. Should another one be said, its keys and values are written over.

    Attributes:
        length: positions that the cache holds, the next step's not among them.
    """

    def __init__(
        self,
        model: PaliGemma,
        like: KVCache,
        capacity: int,
        *,
        addresses: tuple[int, ...],
        capture: bool,
    ) -> None:
        self.model = model
        self.addresses = addresses
        self.device = like.valid.device
        decoder = model.config.decoder
        self.nbytes = step_bytes(decoder, like, capacity)
        self.stream = torch.cuda.Stream(self.device) if capture else None
        self.graph = None
        with _plain():
            self.cache = StaticKV(like, capacity)
            shape = decoder.depth, decoder.heads, capacity
            here, numbers = {"device": self.device}, {"dtype": torch.float32}
            self.token = torch.zeros(1, 1, dtype=torch.long, **here)
            self.logits = torch.zeros(decoder.vocabulary, **here, **numbers)
            self.attention = torch.zeros(shape, **here, **numbers)
            if capture:
                self.graph = self._capture()

    def begin(self, cache: KVCache, *, ahead: bool = False) -> None:
        """Go on behind what a cache holds, until there is no more room in that."""
        self.length, self.room = cache.length, cache.capacity
        self.ahead = ahead
        self.last: Outcome | None = None
        self.next: Outcome | None = None
        with _plain():
            self.cache.fill(cache)

    def __call__(self, token: int, tap: Tap = LOOK_AWAY) -> Tensor:
        """float32 logits [V] behind one more token; a tap is shown its attention.

        Raises:
            ValueError: there is no room for it.
        """
        if self.length == self.room:
            raise ValueError(
                f"position {self.length + 1} is past the capacity of {self.room}"
            )
        with _plain():
            now = self._foreseen(token) or self._run(self.length, token)
            self.length += 1
            more = self.ahead and self.length < self.room
            self.next = self._run(self.length) if more else None
            now.wait()
        self.last = now
        self._show(now.attention, tap)
        return now.logits

    def end(self) -> None:
        """Wait for all that is under way; nothing of the request remains."""
        if self.stream is not None:
            self.stream.synchronize()
        self.last = self.next = None

    def _foreseen(self, token: int) -> Outcome | None:
        """The step that is under way, if it was this token that it went on with."""
        if self.next is None:
            return None
        if int(self.last.likeliest) == token:
            return self.next
        self.next.wait()  # what it writes to is not to be used for something else yet
        return None

    def _run(self, place: int, token: int | None = None) -> Outcome:
        """Start a step, with the token that the last one found likeliest or another."""
        layers, heads, _ = self.attention.shape
        out = Outcome(
            torch.empty_like(self.logits),
            self.attention.new_empty(layers, heads, place + 1),
            torch.empty_like(self.token),
            None if self.stream is None else torch.cuda.Event(),
        )
        with self._aside():
            if token is not None:
                self.token.fill_(token)
                self.cache.place.fill_(place)
            if self.graph is None:
                self._decode()
            else:
                self.graph.replay()
            # Copies, as the next step overwrites what is read meanwhile.
            out.logits.copy_(self.logits)
            out.attention.copy_(self.attention[..., : place + 1])
            out.likeliest.copy_(self.token)
            if out.done is not None:
                out.done.record()
        return out

    def _decode(self) -> None:
        """What is captured."""
        rows = Rows()
        logits = self.model(self.token, cache=self.cache, tap=rows)[0, 0]
        self.logits.copy_(logits)
        torch.stack(rows.layers, out=self.attention)
        self.token.copy_(logits.argmax())

    def _capture(self) -> torch.cuda.CUDAGraph:
        # On the step's own stream from the first pass on, as the libraries' workspaces
        # belong to a stream: two graphs that run at once must not share one. Errors
        # are for what this thread does: others answer other requests meanwhile.
        graph = torch.cuda.CUDAGraph()
        how = {"stream": self.stream, "capture_error_mode": "thread_local"}
        with CAPTURING, self._aside():
            for _ in range(WARM_UP):
                self._decode()
            with torch.cuda.graph(graph, **how):
                self._decode()
            if not torch.allclose(self._first(graph.replay), self._first(self._decode)):
                raise RuntimeError("a replay gives something else than what it replays")
        torch.cuda.current_stream(self.device).wait_stream(self.stream)
        return graph

    def _first(self, run: Callable[[], None]) -> Tensor:
        """The logits of a step behind nothing."""
        self.token.zero_()
        self.cache.place.zero_()
        run()
        return self.logits.clone()

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """On the step's own stream, behind what the caller's has been told so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            yield

    def _show(self, attention: Tensor, tap: Tap) -> None:
        decoder = self.model.config.decoder
        shape = 1, decoder.heads, 1, decoder.head_size
        q = torch.empty(shape, device="meta")
        k = torch.empty(1, decoder.kv_heads, attention.shape[-1], 0, device="meta")
        for layer, row in enumerate(attention[:, None, :, None]):  # [1, N, 1, S]
            weights = Weights(lambda q, k, rows, row=row: row[:, :, rows], q, k)
            tap.attention("decoder", layer, weights)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a step leaves behind, once it is `done`.

    Attributes:
        logits: float32 [V].
        attention: float32 [L, N, S].
        likeliest: long [1, 1], the token that the next step goes on with by itself.
    """

    logits: Tensor
    attention: Tensor
    likeliest: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> None:
        """Let what the current stream is told from now on come behind it."""
        if self.done is not None:
            self.done.wait(torch.cuda.current_stream(self.logits.device))


class Rows(Tap):
    """The attention of a single row, [N, S] of each layer."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        self.layers.append(weights(slice(None))[0, :, 0])


def step_bytes(config: GemmaConfig, cache: KVCache, capacity: int) -> int:
    """What a step holds that goes on behind such a cache."""
    kv = cache.nbytes // cache.capacity * capacity
    return kv + 4 * (config.depth * config.heads * capacity + config.vocabulary)


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """No gradients, and tensors that can be written to by whoever calls next.

    Those that are made in inference mode can not, outside of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield
