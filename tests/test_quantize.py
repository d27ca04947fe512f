"""Int8 linears against integers counted one by one, float64, and transformers."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from engines import PIECES, picture
from oracle import (
    IMAGE,
    TEXT,
    VISION,
    VOCABULARY,
    batch,
    load,
    random_model,
    read,
    write,
)
from test_exact import distance
from torch import Tensor, nn
from torch.nn import functional as F

import app
import vlm
from vlm import arithmetic, checkpoint, column_mlp, exact, quantize
from vlm.layers import MLP, GatedMLP
from vlm.quantize import Int8Linear, Rows, linears, product, quantize_rows
from vlm.tiny.vocabulary import train_vocabulary
from vlm.ui import page

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("rows", [1, 2, 40, 700])
@pytest.mark.parametrize("width, out", [(64, 96), (333, 1025), (4304, 32), (2048, 6)])
@pytest.mark.parametrize("much", [1, quantize.MUCH])
def test_integers_are_multiplied_exactly(rows, width, out, much, monkeypatch):
    monkeypatch.setattr(quantize, "MUCH", much)
    used = products(monkeypatch)
    dice = torch.Generator().manual_seed(rows)
    x, weight = (
        torch.randint(-127, 128, shape, generator=dice)
        for shape in ((rows, width), (out, width))
    )
    x[:, 0] = 127  # so that the scale of every row is one
    ones = torch.ones(out, 1)
    got = product(x.float(), weight.to(torch.int8), ones)
    assert torch.equal(got.double(), x.double() @ weight.double().T)
    halved = rows == much == 1 and out % 2 == 0 and 2 * width <= quantize.PAGE
    assert len(used) == 1 + halved


def test_the_largest_sums_fit():
    x, weight = torch.full((2, 16384), 127.0), torch.full((2, 16384), 127)
    weight[1] = -127
    got = product(x, weight.to(torch.int8), torch.ones(2, 1))
    assert got.tolist() == [[16384.0 * 127**2, -16384.0 * 127**2]] * 2


def test_a_product_is_no_further_off_than_rounding_allows():
    x, weight = random(50, 600) * sizes(50), random(80, 600) * sizes(80)
    rounded, scale = quantize_rows(weight)
    got = product(x, rounded, scale).double()
    exact = x.double() @ weight.double().T
    half_x = quantize_rows(x)[1].double() / 2  # [M, 1], at most off by this
    half_weight = scale.double().T / 2
    ones = torch.ones(600, dtype=torch.float64)
    bound = (x.double().abs() @ ones)[:, None] * half_weight
    bound += half_x * (weight.double().abs() @ ones) + 600 * half_x * half_weight
    assert ((got - exact).abs() <= bound * (1 + 1e-5)).all()


def test_nothing_is_lost_but_what_was_rounded():
    x, weight = random(50, 600) * sizes(50), random(80, 600) * sizes(80)
    (rows, scales), (rounded, scale) = quantize_rows(x), quantize_rows(weight)
    expected = (rows.double() * scales) @ (rounded.double() * scale).T
    torch.testing.assert_close(
        product(x, rounded, scale).double(), expected, rtol=1e-6, atol=0
    )


def test_rounding_is_to_the_nearest_and_the_largest_becomes_127():
    x = random(30, 500) * sizes(30)
    rows, scales = quantize_rows(x)
    assert (rows.int().abs().amax(1) == 127).all() and rows.min() == -127
    assert ((rows * scales - x).abs() <= scales * 0.50001).all()


@pytest.mark.parametrize("much", [1, quantize.MUCH])
def test_every_row_has_a_scale_of_its_own(much, monkeypatch):
    monkeypatch.setattr(quantize, "MUCH", much)
    weight = quantize_rows(random(70, 300))
    x = random(3, 300) * torch.tensor([[1e-6], [1.0], [1e6]])
    together = product(x, *weight)
    for row, alone in zip(together, x):
        assert torch.equal(row, product(alone[None], *weight)[0])
    assert distance(together, x.double() @ (weight[0] * weight[1]).double().T) < 0.02


def test_rows_of_zeros_stay_zeros():
    x, weight = random(4, 64), random(5, 64)
    x[1], weight[2] = 0, 0
    assert (quantize_rows(x)[1] > 0).all()  # what 0 / 0 rounds to differs by processor
    for rows in (x, x[1:2]):
        got = product(rows, *quantize_rows(weight))
        assert got.isfinite().all() and (got[:, 2] == 0).all()
    assert (product(x, *quantize_rows(weight))[1] == 0).all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16, torch.float32])
def test_in_chunks_it_is_the_same(half, monkeypatch):
    x, weight = random(600, 40), random(2500, 40).to(half)
    whole = quantize_rows(weight)
    expected = product(x, *whole)
    monkeypatch.setattr(quantize, "BLOCK", 100)
    monkeypatch.setattr(quantize, "SUMS", 600)
    for ours, theirs in zip(quantize_rows(weight), whole):
        assert torch.equal(ours, theirs)
    assert torch.equal(product(x, *whole), expected)


def test_a_layer_has_its_bias_and_any_number_of_axes():
    plain = nn.Linear(60, 50)
    layer = Int8Linear(*quantize_rows(plain.weight.detach()), plain.bias)
    x = random(2 * 3 * 4, 60).view(2, 3, 4, 60)
    assert layer(x).shape == (2, 3, 4, 50)
    assert distance(layer(x), plain(x).detach()) < 0.03
    assert torch.equal(layer(x)[1, 2, 3], layer(x[1:, 2:, 3:])[0, 0, 0])


def in_int8(model: nn.Module) -> None:
    rows = {k: Rows(*quantize_rows(p.weight)) for k, p in linears(model).items()}
    quantize.swap(model, rows)


def in_halves(model: nn.Module) -> None:
    exact.swap(model.bfloat16())


@pytest.mark.parametrize("rows", [1, 2, 300])
@pytest.mark.parametrize(
    "mlp", [partial(GatedMLP, 48, 5000), partial(MLP, 48, 5000, "gelu_pytorch_tanh")]
)
@pytest.mark.parametrize("swapped", [in_int8, in_halves])
def test_an_mlp_by_columns_is_what_its_layers_give_one_after_the_other(
    mlp, rows, swapped
):
    plain = mlp().requires_grad_(False)
    whole = nn.ModuleDict({"mlp": plain})
    swapped(whole)
    column_mlp.swap(whole)
    assert type(whole["mlp"]) is not type(plain)
    x = 3 * random(2 * rows, 48).view(2, rows, 48)
    expected = type(plain).forward(plain, x)  # the same layers, swapped
    assert expected.std() > 0.1
    torch.testing.assert_close(whole["mlp"](x), expected, rtol=1e-5, atol=1e-6)
    wide = x.requires_grad_()
    assert torch.equal(whole["mlp"](wide), type(plain).forward(plain, wide))


def test_gradients_pass_straight_through_what_was_rounded(monkeypatch):
    monkeypatch.setattr(quantize, "SUMS", 60 * 7)
    weight = quantize_rows(random(50, 60))
    x = random(6, 60).requires_grad_()
    push = random(6, 50)
    (Int8Linear(*weight, None)(x) * push).sum().backward()
    expected = push.double() @ (weight[0].double() * weight[1].double())
    torch.testing.assert_close(x.grad.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ["several", "one"])
def test_a_processor_whose_sums_overflow_is_noticed(rows, monkeypatch, tmp_path):
    def saturating(x: Tensor, weight: Tensor) -> Tensor:
        """Pairs of u8 times s8 products in 16 bits: `pmaddubsw`, before VNNI."""
        if (weight.shape[1] == 1) != (rows == "one"):  # it comes as a column
            return torch.matmul(x.int(), weight.int())
        pairs = (x.int() + 128)[:, :, None] * weight.int()[None]  # [M, K, N]
        pairs = pairs.unflatten(1, (-1, 2)).sum(2).clamp(-(2**15), 2**15 - 1)
        return (pairs.sum(1) - 128 * weight.int().sum(0)).int()

    assert quantize.is_exact.__wrapped__()
    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert not quantize.is_exact.__wrapped__()
    monkeypatch.setattr(quantize, "is_exact", lambda: False)
    model = load(write(tmp_path / "model", random_model("gemma")))
    with pytest.raises(ValueError, match="VNNI.*quantize='none'"):
        arithmetic.settle(model, tmp_path / "model", "int8")


@torch.no_grad()
# Norms behind the branches bring what each of them rounds to full size.
@pytest.mark.parametrize("kind, least", [("gemma", 0.999), ("gemma2", 0.998)])
def test_logits_point_where_those_of_transformers_do(kind, least, tmp_path):
    folder = write(tmp_path / "model", wide_model(kind).to(torch.bfloat16))
    oracle, model = read(folder), load(folder, dtype="bfloat16")
    asked = batch(model, prompts=(9,), answer=12)
    expected = oracle(**asked.theirs()).logits[0].double()
    assert arithmetic.settle(model, folder, "int8") == "int8"
    features = model.look(asked.pixels)
    got = model(asked.ids, features, **asked.ours())[0].double()
    assert F.cosine_similarity(got, expected).min() > least
    assert distance(got, expected) > 1e-3  # so it is in int8


def test_every_linear_is_swapped_and_nothing_else(cases, tmp_path):
    folder = copied(cases["gemma"].folder, tmp_path)
    plain, model = load(folder), load(folder)
    arithmetic.settle(model, folder, "int8")
    assert not linears(model)
    swapped = {k: p for k, p in model.named_modules() if isinstance(p, Int8Linear)}
    assert swapped.keys() == linears(plain).keys() and "decoder.head" in swapped
    matrices = {f"{name}.weight" for name in swapped}
    state = model.state_dict()
    for name, tensor in plain.state_dict().items():
        if name not in matrices:
            assert torch.equal(state[name], tensor), name
    ids = torch.arange(VOCABULARY)[None]
    assert torch.equal(model.decoder.embed(ids), plain.decoder.embed(ids))


@torch.no_grad()
def test_two_requests_at_once_get_what_they_get_alone():
    layer = Int8Linear(*quantize_rows(random(900, 600)), None)
    asked = [random(1 + 39 * i, 600) * 10**i for i in range(2)]
    alone = [layer(x) for x in asked]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            for got, expected in zip(pool.map(layer, asked), alone):
                assert torch.equal(got, expected)


def test_int8_is_refused_where_it_is_not_computed(cases, tmp_path):
    folder = copied(cases["gemma"].folder, tmp_path)
    spread = load(folder)
    spread.hf_device_map = {"vision": 0, "decoder": "cpu"}
    for model in (spread, load(folder, device="meta")):
        before = linears(model).keys()
        with pytest.raises(ValueError, match="device='cpu'.*leave quantize out"):
            arithmetic.settle(model, folder, "int8")
        assert linears(model).keys() == before
    assert not (tmp_path / "model-int8.safetensors").exists()


def test_int8_weights_are_not_saved_as_if_they_were_weights(cases, tmp_path):
    model = settled(copied(cases["gemma"].folder, tmp_path))
    with pytest.raises(ValueError, match="without int8 to save it"):
        checkpoint.save(model, tmp_path / "saved")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a vocabulary, to be asked through an engine."""
    folder = tmp_path_factory.mktemp("asked") / "model"
    model = random_model("gemma", vocabulary=PIECES + 7, image=PIECES, strength=1.4)
    write(folder, model)
    train_vocabulary(folder / "tokenizer.model")
    return folder


def test_weights_in_int8_are_shuffled_too(asked):
    engine = vlm.load(asked, device="cpu", quantize="int8")
    own, other = engine.model, vlm.probes.shuffled(engine).model
    assert linears_of_int8(own)
    for name, layer in linears_of_int8(own.decoder.blocks).items():
        weight = other.decoder.blocks.get_submodule(name).weight
        assert not torch.equal(weight, layer.weight), name
        assert torch.equal(*(w.flatten().sort()[0] for w in (weight, layer.weight)))


def linears_of_int8(model: nn.Module) -> dict[str, Int8Linear]:
    found = model.named_modules()
    return {name: part for name, part in found if isinstance(part, Int8Linear)}


def test_an_engine_says_that_it_is_int8_and_counts_what_was_learnt(asked):
    engine = vlm.load(asked, device="cpu", quantize="int8")
    plain = vlm.load(asked, device="cpu", quantize="none")
    told, expected = engine.describe(), plain.describe()
    assert (told["arithmetic"], expected["arithmetic"]) == ("int8", "float32")
    assert {**told, "arithmetic": "float32"} == expected
    parts = {part.name: part for part in vlm.anatomy.parts(engine)}
    counted = {name: part.parameters for name, part in parts.items()}
    assert counted.pop("head") == 0
    assert counted == {p.name: p.parameters for p in vlm.anatomy.parts(plain)}
    assert "int8" in parts["decoder"].dtypes and "int8" in parts["vision tower"].dtypes
    head = engine.model.decoder.head.weight
    assert (parts["head"].bytes, parts["head"].dtypes) == (head.numel(), ("int8",))


def test_the_page_says_what_is_computed_with(asked, monkeypatch):
    how = ["--model", str(asked), "--device", "cpu", "--quantize", "int8"]
    monkeypatch.setattr("sys.argv", ["app.py", *how])
    models = app.load(app.parse())
    models.wait()
    demo = page.build(models, Path(app.HERE, "assets", "examples"))
    assert "cpu · int8" in json.dumps(demo.config, ensure_ascii=False, default=str)


def test_auto_does_not_quantise_what_has_not_been_shown_to_stand_it(asked):
    engine = vlm.load(asked, device="cpu")
    assert engine.describe()["arithmetic"] == "float32"
    assert not any(isinstance(part, Int8Linear) for part in engine.model.modules())


@pytest.mark.parametrize(
    "how, said",
    [
        ({"quantize": "int4"}, "'auto', 'none', 'int8'.*not 'int4'"),
        ({"quantize": "int8", "dtype": "bfloat16"}, "leave one of the two out"),
        ({"quantize": "int8", "device": "meta"}, "device='cpu'"),
    ],
)
def test_what_does_not_go_together_is_told(asked, how, said):
    with pytest.raises(ValueError, match=said):
        vlm.load(asked, **{"device": "cpu", **how})


def test_answers_edits_and_traces_work_in_int8(asked):
    engine = vlm.load(asked, device="cpu", quantize="int8")
    plain = vlm.load(asked, device="cpu")
    trace = vlm.Trace()
    steps = list(
        engine.stream(picture(), "detect cat", tap=trace, max_tokens=6, stop=())
    )
    answer = [step.token for step in steps]
    scored = [e.score(picture(), "detect cat", answer) for e in (engine, plain)]
    chances = torch.tensor([[step.probability for step in each] for each in scored])
    streamed = torch.tensor([step.probability for step in steps])
    torch.testing.assert_close(chances[0], streamed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chances[0], chances[1], rtol=0.2, atol=0.02)
    heat = vlm.probes.image_attention(trace, 5, layer=-1)
    assert heat.isfinite().all() and heat.sum() > 0
    asking = [
        vlm.probes.Asked(e, picture(), "detect cat", tuple(answer))
        for e in (engine, plain)
    ]
    for probe in (vlm.probes.relevancy, vlm.probes.gradient_attention):
        ours, expected = (probe(each, 2).flatten().double() for each in asking)
        assert F.cosine_similarity(ours, expected, dim=0) > 0.99


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def sizes(rows: int) -> Tensor:
    """float32 [rows, 1], from very small to very large."""
    return 10.0 ** torch.linspace(-4, 4, rows)[:, None]


def wide_model(kind: str) -> transformers.PaliGemmaForConditionalGeneration:
    """Eight layers, wide enough that rounding averages out, as in real ones."""
    text = {"model_type": kind, "num_key_value_heads": 1, "head_dim": 64}
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    narrow = {"hidden_size": 144, "intermediate_size": 512, "num_hidden_layers": 6}
    torch.manual_seed(5)
    return transformers.PaliGemmaForConditionalGeneration(
        transformers.PaliGemmaConfig(
            text_config={**TEXT, **wide, **text},
            vision_config={"model_type": "siglip_vision_model", **VISION, **narrow},
            projection_dim=512,
            image_token_index=IMAGE,
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "model"))


def settled(folder: Path):
    model = load(folder)
    arithmetic.settle(model, folder, "int8")
    return model


def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each product of integers."""
    used, act = [], torch._int_mm

    def multiplied(rows: Tensor, weight: Tensor) -> Tensor:
        used.append(len(rows))
        return act(rows, weight)

    monkeypatch.setattr(torch, "_int_mm", multiplied)
    return used
