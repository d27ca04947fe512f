"""Half-precision weights in float32 arithmetic, against float64 and transformers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from engines import PIECES, picture
from oracle import CASES, batch, load, random_model, read, write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vlm
from vlm import arithmetic, checkpoint, exact
from vlm.cache import KVCache
from vlm.exact import HalfEmbedding, HalfLinear, Room
from vlm.tiny.vocabulary import train_vocabulary

HALVES = (torch.bfloat16, torch.float16)
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul"}


@pytest.fixture(autouse=True)
def half_never_pays(monkeypatch: pytest.MonkeyPatch):
    """Whatever the machine that runs the tests is good at."""
    monkeypatch.setattr(arithmetic, "half_pays", lambda dtype: False)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("rows", [2, 33])
def test_several_rows_are_multiplied_as_in_float64(half, rows):
    x, weight = matrices(rows, 130, 70, half)
    error = distance(exact.product(x, weight, Room()), x.double() @ weight.double().T)
    assert error < 1e-6


@pytest.mark.parametrize("half, bound", [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_a_single_row_is_rounded_once_going_in_and_once_coming_out(half, bound):
    x, weight = matrices(1, 1000, 700, half)
    assert (
        distance(exact.product(x, weight, Room()), x.double() @ weight.double().T)
        < bound
    )


def test_weights_are_widened_a_few_rows_at_a_time(monkeypatch):
    x, weight = matrices(5, 64, 1000, torch.bfloat16)
    whole = exact.product(x, weight, Room())
    monkeypatch.setattr(exact, "WIDENED", 64 * 7)
    with Watched() as seen:
        torch.testing.assert_close(exact.product(x, weight, Room()), whole)
    assert max(seen.widened) == 64 * 7 and len(seen.widened) == 143  # 142 * 7 + 6 rows


def test_gradients_are_those_of_a_plain_layer(monkeypatch):
    monkeypatch.setattr(exact, "WIDENED", 70 * 4)
    x, weight = matrices(6, 70, 30, torch.bfloat16)
    bias = nn.Parameter(torch.randn(30))
    ours, plain = (x.clone().requires_grad_() for _ in range(2))
    layer = HalfLinear(nn.Parameter(weight, False), bias, Room())
    push = torch.randn(2, 3, 30)
    (layer(ours.view(2, 3, 70)) * push).sum().backward()
    (nn.functional.linear(plain.view(2, 3, 70), weight.float()) * push).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.fixture(params=CASES)
def halved(request: pytest.FixtureRequest, tmp_path: Path):
    """A checkpoint in bfloat16: its folder, transformers' float32, and ours."""
    write(tmp_path, random_model(request.param).to(torch.bfloat16))
    model = load(tmp_path, dtype="bfloat16")
    assert arithmetic.settle(model, tmp_path) == "bf16 weights, float32 arithmetic"
    return tmp_path, read(tmp_path), model


@torch.no_grad()
def test_a_pass_equals_transformers_in_float32(halved):
    _, oracle, model = halved
    asked = batch(model, prompts=(5, 3), answer=6)
    expected = oracle(**asked.theirs()).logits
    pixels = asked.pixels  # float32, where the weights are not
    features = model.look(pixels).reshape(2, -1, model.config.decoder.width)
    with Watched() as seen:
        logits = model(asked.ids, features, **asked.ours())
    real = asked.seen.bool()
    assert distance(logits[real], expected[real]) < 1e-5
    assert not seen.half_products


@torch.no_grad()
def test_a_generated_token_is_close_to_transformers_in_float32(halved):
    _, oracle, model = halved
    asked = batch(model, prompts=(5,), answer=4)
    expected = oracle(**asked.theirs()).logits[:, -4:]
    cache = KVCache(model.config.decoder.depth, asked.ids.shape[1])
    how = {"cache": cache, "prefix": asked.types[:, :-4] == 0}
    features = asked.features(Float32(model))
    model(asked.ids[:, :-4], features, **how)
    with Watched() as seen:
        rows = [model(row[:, None], cache=cache) for row in asked.ids[:, -4:].T]
    # These weights are as wild as they come: real ones round less (see the benchmark).
    assert distance(torch.cat(rows, dim=1), expected) < 3e-2
    assert not seen.half_products and not seen.widened


def test_weights_stay_in_the_file_that_they_are_mapped_from(halved):
    folder, _, model = halved
    asked = batch(model, answer=3)
    model(asked.ids, asked.features(Float32(model)), **asked.ours())
    matrices = [
        part.weight
        for part in model.modules()
        if isinstance(part, (HalfLinear, HalfEmbedding))
    ]
    assert len(matrices) > 30
    for weight in matrices:
        assert weight.dtype == torch.bfloat16
        assert mapped_from(weight) == str(folder / "model.safetensors")
    tied = model.config.decoder.tied_head
    assert (model.decoder.head.weight is model.decoder.embedding.weight) == tied
    others = {p.dtype for p in model.parameters() if all(p is not m for m in matrices)}
    assert others == {torch.float32}


def test_what_is_saved_is_what_was_loaded(halved, tmp_path):
    folder, _, model = halved
    checkpoint.save(model, tmp_path / "again")
    again = load(tmp_path / "again", dtype="bfloat16").state_dict()
    for name, tensor in load(folder, dtype="bfloat16").state_dict().items():
        assert torch.equal(tensor, again[name]), name


@torch.no_grad()
def test_two_requests_at_once_get_what_they_get_alone(monkeypatch):
    monkeypatch.setattr(exact, "WIDENED", 600 * 16)  # often
    weight = nn.Parameter(matrices(1, 600, 900, torch.bfloat16)[1])
    layer = HalfLinear(weight, None, Room())
    asked = [torch.randn(1, 40, 600) * 10**i for i in range(2)]
    alone = [layer(x) for x in asked]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            for got, expected in zip(pool.map(layer, asked), alone):
                assert torch.equal(got, expected)


@torch.no_grad()
def test_where_half_precision_pays_only_single_rows_go_another_way(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(arithmetic, "half_pays", lambda dtype: True)
    write(tmp_path, random_model("gemma").to(torch.bfloat16))
    plain, model = (load(tmp_path, dtype="bfloat16") for _ in range(2))
    assert arithmetic.settle(model, tmp_path) == "bfloat16"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    asked = batch(model, prompts=(5,), answer=4)
    prompt, how = asked.ids[:, :-4], {"prefix": asked.types[:, :-4] == 0}
    states = []
    for each in (plain, model):
        cache = KVCache(model.config.decoder.depth, asked.ids.shape[1])
        logits = [each(prompt, asked.features(plain), cache=cache, **how)[:, -1:]]
        with Watched() as seen:
            logits += [each(row[:, None], cache=cache) for row in asked.ids[:, -4:].T]
        states.append(torch.cat(logits, dim=1))
    assert torch.equal(states[1][:, 0], states[0][:, 0])
    assert distance(states[1], states[0]) < 3e-2
    # What is left multiplies queries, keys and values.
    assert not {"mm", "addmm", "linear"} & set(seen.half_products)


@pytest.mark.parametrize("half, bound", [(torch.bfloat16, 5e-3), (torch.float16, 6e-4)])
@pytest.mark.parametrize("shape", [(1, 1, 130), (130,), (1, 2, 130)])
def test_a_row_that_goes_another_way_gets_there(half, bound, shape):
    weight, bias = matrices(90, 130, 90, half)[1], torch.randn(90)
    linear = nn.Linear(130, 90, dtype=half).requires_grad_(False)
    linear.weight.copy_(weight), linear.bias.copy_(bias)
    x = torch.randn(shape).to(half).requires_grad_()
    found = exact.RowLinear(linear)(x)
    expected = x.double() @ weight.double().T + linear.bias.double()
    assert found.dtype == half
    assert distance(found.detach(), expected.detach()) < bound
    found.sum().backward()
    ours, x.grad = x.grad, None
    expected.sum().backward()
    assert distance(ours, x.grad) < bound


@pytest.mark.parametrize("half, pays", [(1.0, True), (1.9, False), (5.0, False)])
def test_what_pays_is_measured_and_a_little_is_not_enough(half, pays, monkeypatch):
    monkeypatch.undo()

    def quickest(*acts):
        narrow, wide = (act() for act in acts)  # the real products
        assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
        assert (narrow == 1024).all() and (wide == 1024).all()
        return half, 2.0

    monkeypatch.setattr(arithmetic, "quickest", quickest)
    assert arithmetic.half_pays.__wrapped__(torch.bfloat16) is pays


def test_the_quickest_time_of_each_act_counts_but_not_the_first():
    waits = {"even": [0.0, 0.01, 0.01], "uneven": [0.0, 0.05, 0.002]}

    def act(name: str) -> None:
        time.sleep(waits[name].pop(0) if waits[name] else 0.1)

    even, uneven = arithmetic.quickest(
        lambda: act("even"), lambda: act("uneven"), budget=0.07
    )
    assert 0.01 <= even and 0.002 <= uneven < even


def test_one_thread_is_chosen_where_several_would_only_wait(tmp_path, monkeypatch):
    model = load(write(tmp_path, random_model("gemma")))
    assert arithmetic.threads(model) == 1  # there is no choice in these tests
    torch.set_num_threads(2)
    try:
        for times, expected in (((1.0, 2.0), 1), ((2.0, 1.0), 2)):
            ran = []

            def quickest(*acts, ran=ran, times=times):
                for act in acts:
                    act()
                    ran.append(torch.get_num_threads())
                return times

            monkeypatch.setattr(arithmetic, "quickest", quickest)
            assert arithmetic.threads(model) == expected
            assert ran == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_float32_and_spread_models_are_left_alone(tmp_path):
    write(tmp_path, random_model("gemma"))
    model = load(tmp_path)
    assert arithmetic.settle(model, tmp_path) == "float32"
    spread = load(tmp_path, dtype="bfloat16")
    spread.hf_device_map = {"vision": 0, "decoder": "cpu"}
    assert arithmetic.settle(spread, tmp_path) == "bfloat16"
    for left in (model, spread):
        assert not any(isinstance(part, HalfLinear) for part in left.modules())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a vocabulary, to be asked through an engine."""
    folder = tmp_path_factory.mktemp("asked")
    model = random_model("gemma2", vocabulary=PIECES + 7, image=PIECES, strength=1.4)
    write(folder, model.to(torch.bfloat16))
    train_vocabulary(folder / "tokenizer.model")
    return folder


def test_an_engine_says_what_it_computes_with_and_probes_work_with_gradients(folder):
    engine = vlm.load(folder, device="cpu", dtype="bfloat16")
    plain = vlm.load(folder, device="cpu", dtype="float32")
    told = engine.describe()
    assert told["arithmetic"] == "bf16 weights, float32 arithmetic"
    assert told["dtype"] == "float32"
    assert told["parameters"] == plain.describe()["parameters"]
    assert told["cache_bytes"] == plain.describe()["cache_bytes"]
    answer = (9, 8, 7)
    asked = [
        vlm.probes.Asked(e, picture(), "detect cat", answer) for e in (engine, plain)
    ]
    for probe in (vlm.probes.relevancy, vlm.probes.gradient_attention):
        ours, expected = (probe(each, 2).flatten() for each in asked)
        assert distance(ours, expected) < 1e-4
    ours, expected = (each.engine.logits(picture(), "cat", answer) for each in asked)
    assert distance(ours, expected) < 1e-5


class Watched(TorchDispatchMode):
    """Notes products of half-precision matrices, and how much is widened at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.half_products: list[str] = []
        self.widened: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        given = [each for each in args if isinstance(each, Tensor)]
        halves = [each for each in given if each.dtype in HALVES]
        if name in PRODUCTS and halves:
            self.half_products.append(name)
        if name in ("copy_", "_to_copy") and halves and given[0].dim() == 2:
            wide = given[0] if name == "copy_" else func(*args, **(kwargs or {}))
            if wide.dtype == torch.float32 and len(given[0]) > 1:
                self.widened.append(given[-1].numel())
        return func(*args, **(kwargs or {}))


class Float32:
    """Looks with float32 pixels, whatever the projector's weights are."""

    def __init__(self, model) -> None:
        self.look = model.look
        self.projector = nn.Linear(1, 1)


def matrices(rows: int, width: int, out: int, half: torch.dtype):
    """Inputs of very different size, and half-precision weights [out, width]."""
    dice = torch.Generator().manual_seed(rows)
    random = partial(torch.randn, generator=dice)
    sizes = 10 ** random(rows, 1)
    return random(rows, width) * sizes, (random(out, width) * 0.1).to(half)


def distance(ours: Tensor, expected: Tensor) -> float:
    """The largest relative error of a row."""
    error = (ours.double() - expected.double()).norm(dim=-1)
    return float((error / expected.double().norm(dim=-1)).max())


def mapped_from(tensor: Tensor) -> str:
    """The file that a tensor's memory is mapped from."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else "memory"
    raise AssertionError("it lies nowhere")
