"""The step of fixed shape does what the model does, whoever else is answering."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import pytest
import torch
from engines import Pair, picture
from oracle import Batch, Case, batch
from test_engine import greedy_ids
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import vlm
from vlm import graphs
from vlm.cache import KVCache
from vlm.graphs import Graphs, step_bytes
from vlm.kept import Kept
from vlm.paligemma import PaliGemma
from vlm.tap import Tap, Taps, Weights

PROMPT = "detect cat ; dog"
CLOSE = {"atol": 2e-5, "rtol": 0}
EXACT = {"atol": 1e-6, "rtol": 0}  # what the logits' own float32 is good for
COUNT = 24


class Recorder(Tap):
    """Attention of every pass, one layer after the other."""

    attention_only = True

    def __init__(self) -> None:
        self.layers: list[Tensor] = []

    def attention(self, tower: str, layer: int, weights: Weights) -> None:
        assert (tower, layer) == ("decoder", len(self.layers))
        row = weights(slice(-1, None))
        assert row.shape[-1] == weights.k.shape[2] and weights.q.shape[2] == 1
        self.layers.append(row)

    def take(self) -> Tensor:
        """[L, B, N, 1, S] of the last pass."""
        layers, self.layers = self.layers, []
        return torch.stack(layers)


def read(model: PaliGemma, asked: Batch, capacity: int) -> KVCache:
    """A cache with that room, behind one pass over a question."""
    cache = KVCache(model.config.decoder.depth, capacity)
    with torch.no_grad():
        features = asked.features(model)
        model(asked.ids, features, prefix=asked.types == 0, cache=cache, last=1)
    return cache


def words(count: int, seed: int = 1) -> list[int]:
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(6, 80, (count,), generator=dice).tolist()


def eager(
    model: PaliGemma, cache: KVCache, tokens: list[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and attention behind each token, computed as without a graph."""
    cache, tap = cache.copy(cache.capacity), Recorder()
    for token in tokens:
        with torch.no_grad():
            logits = model(torch.tensor([[token]]), cache=cache, tap=tap)[0, 0]
        yield logits, tap.take()


def stepped(
    lent: Graphs, cache: KVCache, tokens: list[int], **how
) -> Iterator[tuple[Tensor, Tensor]]:
    tap = Recorder()
    with lent.lease(cache, **how) as step:
        for token in tokens:
            yield step(token, tap), tap.take()


def assert_same(ours: Iterator, expected: Iterator, near: dict = CLOSE) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other, **near)


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(graphs, "BUCKET", 8)
    return 8


# --- the step -----------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [False, True])
def test_its_logits_and_attention_are_the_models(any_case: Case, ahead: bool) -> None:
    model, asked = any_case.model, batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + COUNT)
    # Most of them are not the likeliest, which it had gone on with.
    tokens = words(COUNT)
    lent = Graphs(model, capture=False)
    ours = list(stepped(lent, cache, tokens, ahead=ahead))
    assert_same(ours, eager(model, cache, tokens))
    likeliest = [int(logits.argmax()) for logits, _ in ours[:-1]]
    assert likeliest != tokens[1:]


def test_its_logits_and_attention_are_transformers(any_case: Case) -> None:
    model, asked = any_case.model, batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + COUNT)
    tokens = torch.tensor([words(COUNT)])
    whole = Batch(
        torch.cat((asked.ids, tokens), 1),
        asked.pixels,
        torch.cat((asked.types, torch.ones_like(tokens)), 1),
        torch.cat((asked.seen, torch.ones_like(tokens)), 1),
    )
    with torch.no_grad():
        theirs = any_case.oracle(**whole.theirs(), output_attentions=True)
    length = asked.ids.shape[1]
    ours = stepped(Graphs(model, capture=False), cache, tokens[0].tolist())
    for place, (logits, attention) in enumerate(ours, start=length):
        assert_close(logits, theirs.logits[0, place], atol=5e-5, rtol=0)
        for mine, layer in zip(attention, theirs.attentions, strict=True):
            row = layer[:, :, place : place + 1, : place + 1]
            assert_close(mine, row, atol=1e-4, rtol=0)


def test_in_double_precision_nothing_is_left_of_the_difference(any_case: Case) -> None:
    model, asked = copy.deepcopy(any_case.model).double(), batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + COUNT)
    assert cache.keys[0].dtype == torch.float64
    ours = stepped(Graphs(model, capture=False), cache, words(COUNT))
    assert_same(ours, eager(model, cache, words(COUNT)), EXACT)


def test_in_half_precision_it_rounds_as_the_model_does(any_case: Case) -> None:
    model, asked = copy.deepcopy(any_case.model).bfloat16(), batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + COUNT)
    ours = list(stepped(Graphs(model, capture=False), cache, words(COUNT)))
    expected = list(eager(model, cache, words(COUNT)))
    exact = read(any_case.model, asked, asked.ids.shape[1] + COUNT)
    truth = list(eager(any_case.model, exact, words(COUNT)))
    for mine, theirs, true in zip(ours, expected, truth, strict=True):
        assert mine[0].dtype == mine[1].dtype == torch.float32
        for one, other, right in zip(mine, theirs, true, strict=True):
            # No further from the truth than rounding takes the model itself.
            assert (one - right).norm() < 1.5 * (other - right).norm() + 1e-2


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_it_goes_to_the_very_end_of_its_bucket(
    any_case: Case, small_buckets: int, over: int
) -> None:
    model, asked = any_case.model, batch(any_case.model)
    length = asked.ids.shape[1]
    room = -(-(length + 4) // small_buckets) * small_buckets + over
    cache = read(model, asked, room)
    tokens = words(room - length)
    lent = Graphs(model, capture=False)
    assert_same(stepped(lent, cache, tokens, ahead=True), eager(model, cache, tokens))
    assert lent.idle[0].cache.capacity == room + (-over) % small_buckets
    with pytest.raises(ValueError, match=f"{room + 1} is past the capacity of {room}"):
        list(stepped(lent, cache, [*tokens, 7]))


def test_a_step_does_the_same_things_in_the_same_places(any_case: Case) -> None:
    """All that a capture asks for and that can be seen without a GPU."""
    model, asked = any_case.model, batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + COUNT)

    class Did(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.acts = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            flat = torch.utils._pytree.tree_leaves((args, kwargs, made))
            self.acts.append((str(func), *map(told, flat)))
            return made

    def told(value):
        """A number is captured as it is; a tensor by its place, which for what is
        made in between is the graph's own business."""
        if not isinstance(value, Tensor):
            return repr(value)
        return tuple(value.shape), places.get(value.data_ptr(), "between")

    with Graphs(model, capture=False).lease(cache) as step:
        held = [*model.decoder.state_dict().values(), step.token, step.logits]
        held += [*step.cache.keys, *step.cache.values, step.cache.place]
        held += [step.cache.valid, step.cache.prefix, step.attention]
        places = {tensor.data_ptr(): i for i, tensor in enumerate(held)}
        passes = []
        for token in words(12):
            step(token)
            step.cache.place.sub_(1)  # once more, on the same place
            with torch.no_grad(), Did() as did:
                step._decode()
            passes.append(did.acts)
    assert all(acts == passes[0] for acts in passes)
    names = {act[0] for act in passes[0]}
    assert "aten.index_copy_.default" in names
    waits = {"aten._local_scalar_dense.default", "aten.nonzero.default"}
    assert not names & waits
    assert not any("scaled_dot_product" in name for name in names)


# --- lending ------------------------------------------------------------------------


def test_a_second_request_gets_a_second_step(any_case: Case) -> None:
    model, lent = any_case.model, Graphs(any_case.model, capture=False)
    asked = [batch(model, seed=seed, prompts=(4 + seed,)) for seed in range(2)]
    caches = [read(model, one, one.ids.shape[1] + COUNT) for one in asked]
    tokens = [words(COUNT, seed) for seed in range(2)]
    ours = [list() for _ in range(2)]
    for both in zip(*(stepped(lent, *each) for each in zip(caches, tokens))):
        for mine, one in zip(ours, both):
            mine.append(one)
    for mine, cache, said in zip(ours, caches, tokens):
        assert_same(mine, eager(model, cache, said))
    assert (len(lent.idle), len(lent.lent)) == (2, 0)


def test_nothing_of_the_last_request_remains(any_case: Case) -> None:
    model, lent = any_case.model, Graphs(any_case.model, capture=False)
    long, short = batch(model, prompts=(9,)), batch(model, prompts=(3,), seed=1)
    caches = [read(model, one, one.ids.shape[1] + 8) for one in (long, short)]
    list(stepped(lent, caches[0], words(8), ahead=True))
    (step,) = lent.idle
    for tensor in (*step.cache.keys, *step.cache.values, step.attention, step.logits):
        tensor.fill_(torch.nan)
    ours = stepped(lent, caches[1], words(8))
    assert_same(ours, eager(model, caches[1], words(8)))
    assert lent.idle == [step]


def test_steps_are_bounded_in_bytes(any_case: Case, small_buckets: int) -> None:
    model, asked = any_case.model, batch(any_case.model)
    length = asked.ids.shape[1]
    start = -(-length // small_buckets) * small_buckets
    cache = read(model, asked, start)
    sizes = [
        step_bytes(model.config.decoder, cache, start + more)
        for more in (0, small_buckets, 2 * small_buckets)
    ]
    lent = Graphs(model, capture=False, limit=sizes[1] + sizes[2])

    def capacities() -> list[int]:
        return [step.cache.capacity - start for step in lent.idle]

    for more in (0, small_buckets, 2 * small_buckets):
        with lent.lease(cache.copy(start + more)) as step:
            held = (*step.cache.keys, *step.cache.values, step.logits, step.attention)
            assert sum(tensor.nbytes for tensor in held) == step.nbytes
    # The longest unused went.
    assert capacities() == [small_buckets, 2 * small_buckets]
    with lent.lease(cache.copy(start + 1)) as one:
        assert one.cache.capacity == start + small_buckets
        with lent.lease(cache.copy(start + 1)) as two:
            assert two is not None
            with lent.lease(cache.copy(start + 1)) as three:
                assert three is None  # lent ones are not taken away
    with lent.lease(cache.copy(start + 50 * small_buckets)) as huge:
        assert huge is None
    assert lent.idle  # nor is what is too large a reason to give up all others


def test_weights_that_moved_are_not_read_where_they_were(any_case: Case) -> None:
    model, asked = copy.deepcopy(any_case.model), batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + 4)
    lent = Graphs(model, capture=False)
    list(stepped(lent, cache, words(4)))
    (before,) = lent.idle
    scale = model.decoder.blocks[1].attention_norm.scale
    scale.data = scale.data.clone()
    list(stepped(lent, cache, words(4)))
    (after,) = lent.idle
    assert after is not before


def test_a_failing_capture_is_tried_once_and_never_seen(any_case: Case, monkeypatch):
    model, asked = any_case.model, batch(any_case.model)
    cache = read(model, asked, asked.ids.shape[1] + 4)
    lent, tries = Graphs(model), []
    monkeypatch.setattr(lent, "_addresses", lambda: (1,))

    def broken(*args, **how):
        tries.append(how["capture"])
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "DecodeStep", broken)
    for _ in range(3):
        with lent.lease(cache) as step:
            assert step is None
    assert tries == [True]
    assert lent.lent == lent.idle == []


def test_without_a_gpu_nothing_is_lent(pairs: dict[str, Pair]) -> None:
    engine = pairs["gemma"].engine
    list(engine.stream(picture(), PROMPT, max_tokens=3, stop=()))
    assert engine.graphs.capture and not engine.graphs.idle


# --- the engine ---------------------------------------------------------------------


@pytest.fixture
def stepping(both: Pair, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """The pair's engine with steps of fixed shape, and nothing kept."""
    lent = Graphs(both.engine.model, capture=False)
    monkeypatch.setattr(both.engine, "graphs", lent)
    monkeypatch.setattr(both.engine, "prefixes", Kept(64 << 20))
    return lent


def asked(engine: vlm.Engine, image, prompt: str = PROMPT, **how):
    """Steps and trace of a question."""
    trace = vlm.Trace()
    how = {"max_tokens": COUNT, "stop": (), "tap": trace, **how}
    return list(engine.stream(image, prompt, **how)), trace


def without(engine: vlm.Engine, *question, **how):
    """The same without steps of fixed shape."""
    plain = vlm.Engine(engine.model, engine.tokenizer)
    return asked(plain, *question, **how)


def assert_same_answer(one, other) -> None:
    (steps, trace), (expected, theirs) = one, other
    assert [s.token for s in steps] == [s.token for s in expected]
    for mine, step in zip(steps, expected):
        assert (mine.index, mine.text) == (step.index, step.text)
        assert mine.probability == pytest.approx(step.probability, abs=2e-5)
        assert mine.image_share == pytest.approx(step.image_share, abs=2e-5)
        assert [c.token for c in mine.candidates] == [c.token for c in step.candidates]
        rows = (t.answer_row(step.index) for t in (trace, theirs))
        assert_close(*rows, **CLOSE)
    assert trace.answers == theirs.answers


def test_greedy_answers_are_transformers_token_by_token(both: Pair, stepping) -> None:
    for seed in range(3):
        steps, _ = asked(both.engine, picture(seed))
        ids = [step.token for step in steps]
        assert ids == greedy_ids(both, [picture(seed)], PROMPT, count=COUNT)
    assert len(stepping.idle) == 1 and not stepping.lent


def test_steps_and_traces_are_those_of_an_answer_without(both: Pair, stepping) -> None:
    image = picture(3)
    assert_same_answer(asked(both.engine, image), without(both.engine, image))
    again = asked(both.engine, image)  # from the kept prefix
    assert_same_answer(again, without(both.engine, image))


@pytest.mark.parametrize("how", [{"echo": True}, {"max_tokens": 1}, {"max_tokens": 2}])
def test_a_forced_start_is_gone_on_from(both: Pair, stepping, how: dict) -> None:
    how = {"answer": "<loc0100> cat", **how}
    ours = asked(both.engine, picture(4), **how)
    assert_same_answer(ours, without(both.engine, picture(4), **how))


def test_other_samplers_draw_the_same(both: Pair, stepping) -> None:
    how = {"sampler": vlm.Temperature(4.0, seed=5)}
    ours = asked(both.engine, picture(5), **how)
    assert_same_answer(ours, without(both.engine, picture(5), **how))
    greedily = [step.token for step in asked(both.engine, picture(5))[0]]
    assert [step.token for step in ours[0]] != greedily


def test_two_answers_at_once_do_not_mix(both: Pair, stepping) -> None:
    questions = [(picture(0), PROMPT), (picture(1), "caption en")]
    alone = [[s.token for s in without(both.engine, *q)[0]] for q in questions]
    for limit in (graphs.LIMIT, 0):
        stepping.idle.clear()
        stepping.limit = limit
        streams = [both.engine.stream(*q, max_tokens=COUNT, stop=()) for q in questions]
        mixed = [[a.token, b.token] for a, b in zip(*streams, strict=True)]
        assert [list(column) for column in zip(*mixed)] == alone
        assert len(stepping.idle) == (2 if limit else 0)


def test_going_on_leaves_the_kept_prefix_as_it_was(both: Pair, stepping) -> None:
    asked(both.engine, picture(6))
    (kept,) = both.engine.prefixes.kept.values()
    before = [t.clone() for t in (*kept.cache.keys, *kept.cache.values)]
    asked(both.engine, picture(6), answer=" cat")
    for tensor, was in zip((*kept.cache.keys, *kept.cache.values), before):
        assert torch.equal(tensor, was)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_aborted_answer_gives_its_step_back(both: Pair, stepping, steps) -> None:
    stream = both.engine.stream(picture(7), PROMPT, stop=())
    for _ in range(steps):
        next(stream)
    assert len(stepping.lent) == (steps > 1)  # the first token needs none
    stream.close()
    assert not stepping.lent and len(stepping.idle) == (steps > 1)
    assert_same_answer(asked(both.engine, picture(8)), without(both.engine, picture(8)))


def test_a_tap_that_fails_gives_the_step_back(both: Pair, stepping) -> None:
    class Failing(Recorder):
        def attention(self, tower, layer, weights):
            if weights.q.shape[2] == 1:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asked(both.engine, picture(7), tap=Failing())
    assert not stepping.lent and len(stepping.idle) == 1


def test_who_looks_at_more_than_attention_is_shown_it(both: Pair, stepping) -> None:
    class More(Tap):
        def __init__(self):
            self.rows = []

        def residual(self, tower, layer, x):
            self.rows.append(x.shape[1])

    more = More()
    asked(both.engine, picture(7), tap=Taps(more, vlm.Trace()), max_tokens=3)
    assert more.rows.count(1) == 2 * both.engine.config.decoder.depth
    assert not stepping.idle


def test_whether_in_inference_mode_does_not_matter(both: Pair, stepping) -> None:
    for mode in (True, False, True):
        both.engine.prefixes.kept.clear()
        with torch.inference_mode(mode):
            ours = asked(both.engine, picture(9), max_tokens=6)
        assert_same_answer(ours, without(both.engine, picture(9), max_tokens=6))
    assert len(stepping.idle) == 1


# --- streams, pretended ---------------------------------------------------------------


class Streams:
    """In torch.cuda's place: what is done on which stream, and who waits for whom.

    Everything is done at once, so this says nothing about a GPU; it says what one would
    be told, and in which order.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple] = []
        self.now = "default"
        self.capturing = None
        for name in ("Stream", "Event", "CUDAGraph", "graph", "stream"):
            patch.setattr(torch.cuda, name, getattr(self, name))
        patch.setattr(torch.cuda, "current_stream", lambda device: self.stream_of())
        patch.setattr(Graphs, "_addresses", lambda lent: (1,))
        decode = graphs.DecodeStep._decode

        def recorded(step) -> None:
            if self.capturing is not None:
                self.capturing.act = lambda: decode(step)
            decode(step)

        patch.setattr(graphs.DecodeStep, "_decode", recorded)

    def tell(self, *what) -> None:
        self.told.append((self.now, *what))

    def stream_of(self):
        return self.Stream(name=self.now)

    def Stream(self, device=None, name="own"):
        outer = self

        class One:
            def wait_stream(self, other):
                outer.told.append((name, "waits for all of", other.name))

            def synchronize(self):
                outer.told.append(("host", "waits for all of", name))

        one = One()
        one.name = name
        return one

    def Event(self):
        outer = self

        class One:
            def record(self):
                outer.tell("records", id(self))

            def wait(self, stream):
                outer.told.append((stream.name, "waits for", id(self)))

        return One()

    def CUDAGraph(self):
        outer = self

        class One:
            def replay(self):
                outer.tell("replays")
                self.act()

        return One()

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        yield
        self.now = before

    @contextlib.contextmanager
    def graph(self, graph, *, stream, capture_error_mode):
        assert (self.now, stream.name, capture_error_mode) == (
            "own",
            "own",
            "thread_local",
        )
        self.capturing = graph
        yield
        self.capturing = None


def test_a_step_is_read_while_the_next_is_under_way(both: Pair, monkeypatch) -> None:
    plain = [step.token for step in without(both.engine, picture())[0]]
    streams = Streams(monkeypatch)
    engine = vlm.Engine(both.engine.model, both.engine.tokenizer)
    tokens = engine.stream(picture(), PROMPT, max_tokens=COUNT, stop=())
    ids = [next(tokens).token, next(tokens).token]
    streams.told.clear()
    ids.append(next(tokens).token)
    # The third step is asked for: it is under way, and the fourth is started. What was
    # said in the meantime goes before that, and reading does not wait for it.
    recorded = streams.told[2][2]
    waited = streams.told[3][2]
    assert streams.told == [
        ("own", "waits for all of", "default"),
        ("own", "replays"),
        ("own", "records", recorded),
        ("default", "waits for", waited),
    ]
    assert recorded != waited
    ids += [step.token for step in tokens]
    assert ids == plain
    assert streams.told[-1] == ("host", "waits for all of", "own")
    replays = sum(each[1] == "replays" for each in streams.told)
    assert replays == COUNT - 3  # with the three before, one for each but the first
    (step,) = engine.graphs.idle
    assert step.graph is not None

    sampler = vlm.Temperature(4.0, seed=2)
    streams.told.clear()
    how = {"sampler": sampler, "max_tokens": 4, "stop": ()}
    list(engine.stream(picture(), PROMPT, **how))
    assert sum(each[1] == "replays" for each in streams.told) == 3  # none is in vain


# --- on a GPU -----------------------------------------------------------------------


@pytest.fixture
def on_gpu(both: Pair) -> vlm.Engine:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return vlm.load(both.folder, device="cuda:0")


def test_what_is_captured_answers_as_the_model_does(on_gpu: vlm.Engine) -> None:
    uncaptured = vlm.Engine(on_gpu.model, on_gpu.tokenizer)
    uncaptured.graphs.limit = 0
    for seed in range(3):
        ours = asked(on_gpu, picture(seed))
        assert_same_answer(ours, asked(uncaptured, picture(seed)))
    (step,) = on_gpu.graphs.idle
    assert step.graph is not None and not uncaptured.graphs.idle
    questions = [(picture(0), PROMPT), (picture(1), "caption en")]
    alone = [[s.token for s in asked(uncaptured, *q)[0]] for q in questions]
    streams = [on_gpu.stream(*q, max_tokens=COUNT, stop=()) for q in questions]
    mixed = [[a.token, b.token] for a, b in zip(*streams, strict=True)]
    assert [list(column) for column in zip(*mixed)] == alone
