"""vlm.masks against float64 numpy, and how masks reach those who ask an engine."""

from __future__ import annotations

import copy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from engines import Pair, picture
from safetensors.torch import save_file

import vlm
from vlm import masks as module
from vlm.masks import FILE, PUBLISHED, MaskAutoencoder, Masks
from vlm.tiny import masking
from vlm.tiny.scenes import Stock
from vlm.tiny.sprites import load_sprites

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "tiny" / FILE
SHAPES = {"published": {}, "embedded": masking.SHAPE}
CODES = (5, 127, 0, 31, 64, 2, 99, 100, 7, 8, 9, 55, 126, 1, 77, 40)

State = dict[str, np.ndarray]  # the tensors of a file, as float64


@pytest.fixture(scope="module", params=SHAPES)
def autoencoder(request: pytest.FixtureRequest) -> MaskAutoencoder:
    """Random weights under which no layer fades or explodes."""
    dice = torch.Generator().manual_seed(3)
    made = MaskAutoencoder(**SHAPES[request.param])
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            fan = parameter[0].numel() if parameter.ndim == 4 else 1.0
            if parameter.ndim == 4 and name.startswith("decoder") and name[8] in "468":
                fan = parameter.shape[0] * 4.0  # 4 of the 16 taps meet in a pixel
            gain = 0.1 if parameter.ndim == 1 else (1.5 / fan) ** 0.5
            noise = torch.randn(parameter.shape, generator=dice)
            parameter.copy_(gain * noise)
    return made


@pytest.fixture(scope="module")
def state(autoencoder: MaskAutoencoder) -> State:
    return {k: v.double().numpy() for k, v in autoencoder.state_dict().items()}


@pytest.fixture(scope="module")
def masks(autoencoder: MaskAutoencoder) -> Masks:
    return Masks(autoencoder)


# --- the decoder ---------------------------------------------------------------------


def test_a_mask_is_the_float64_references(masks: Masks, state: State) -> None:
    expected = decoded(state, CODES)
    with torch.no_grad():
        cells = torch.tensor(CODES).view(1, 4, 4)
        net = masks.autoencoder
        ours = net.decode(net.entries(cells))[0, 0].numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    mask = masks.decode(CODES)
    assert mask.shape == (64, 64) and mask.dtype == np.float32
    shown = np.clip(expected * 0.5 + 0.5, 0, 1)
    np.testing.assert_allclose(mask, shown, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mistake", ["flipped", "transposed", "wrong codebook"])
def test_a_mistake_in_the_decoder_would_be_seen(
    masks: Masks, state: State, mistake: str
) -> None:
    codes, wrong = np.array(CODES), dict(state)
    if mistake == "flipped":
        wrong |= {
            k: v[..., ::-1, ::-1] for k, v in state.items() if k.endswith("weight")
        }
    elif mistake == "transposed":
        codes = codes.reshape(4, 4).T.ravel()
    else:
        wrong["_vq_vae._embedding"] = np.roll(state["_vq_vae._embedding"], 1, axis=0)
    assert np.abs(decoded(wrong, codes) - decoded(state, CODES)).max() > 0.1
    assert np.abs(as_mask(decoded(wrong, codes)) - masks.decode(CODES)).max() > 0.05


def test_token_t_is_cell_row_by_row(masks: Masks) -> None:
    """A code that changes changes most where its cell lies."""
    for token in (1, 4, 11):
        other = [*CODES[:token], (CODES[token] + 1) % 128, *CODES[token + 1 :]]
        net = masks.autoencoder
        cells = torch.tensor([CODES, other]).view(2, 4, 4)
        changed = net.entries(cells).diff(dim=0).abs().sum((0, 1)).flatten()
        assert changed.nonzero().flatten().tolist() == [token]
        assert changed.view(4, 4)[token // 4, token % 4] > 0


@pytest.mark.parametrize(
    "codes, words",
    [
        ((1,) * 15, "16 codes, not 15"),
        ((1,) * 17, "16 codes, not 17"),
        ((1,) * 15 + (128,), "0 to 127; 128"),
        ((-1,) + (1,) * 15, "0 to 127; -1"),
    ],
)
def test_wrong_codes_are_an_error_that_names_them(
    masks: Masks, codes: tuple[int, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        masks.decode(codes)


def test_recent_masks_are_remembered_and_no_more(
    autoencoder: MaskAutoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    masks = Masks(autoencoder)
    first = masks.decode(CODES)
    assert masks.decode(list(CODES)) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 0.5
    for n in range(5):
        masks.decode((n,) * 16)
    assert masks.decode(CODES) is not first
    assert masks._remembered.cache_info().currsize == 3


def test_requests_that_decode_at_once_do_not_mix(masks: Masks) -> None:
    asked = [tuple(np.roll(CODES, n)) for n in range(8)] * 4
    alone = {codes: masks._decode(codes) for codes in asked}
    with ThreadPoolExecutor(8) as pool:
        for codes, mask in zip(asked, pool.map(masks, asked)):
            np.testing.assert_array_equal(mask, alone[codes])


# --- the encoder ---------------------------------------------------------------------


def test_codes_are_those_of_the_nearest_entries(masks: Masks, state: State) -> None:
    dice = np.random.default_rng(1)
    drawn = dice.integers(2, size=(11, 8, 8)).astype(np.float32)
    drawn = drawn.repeat(8, axis=1).repeat(8, axis=2)
    # A codebook among the cells that are to be told apart.
    book = np.concatenate([encoded(state, mask) for mask in drawn[3:]]).reshape(128, -1)
    masks = Masks(copy.deepcopy(masks.autoencoder))
    masks.autoencoder._vq_vae._embedding.copy_(torch.from_numpy(book))
    codes = masks.encode_many(drawn[:3])
    assert codes.shape == (3, 16)
    for mask, row in zip(drawn, codes):
        cells = encoded(state, mask)  # [4, 4, code]
        for token, code in enumerate(row):
            cell = cells[token // 4, token % 4]
            distances = [((cell - entry) ** 2).sum() for entry in book]
            assert distances[code] <= min(distances) * (1 + 1e-5)
    assert len(np.unique(codes)) > 16


def test_encode_is_encode_many_of_the_resized_mask(masks: Masks) -> None:
    disc = np.hypot(*np.mgrid[-1:1:90j, -1:1:70j]) < 1
    codes = masks.encode(disc)
    assert codes == tuple(masks.encode_many(module.resize(disc)[None])[0])
    assert all(isinstance(code, int) for code in codes) and len(codes) == 16
    assert masks.encode(disc.astype(float)) == codes
    half = np.repeat([0.0, 1.0], 5)[:, None] * np.ones(7)  # the lower half
    assert (module.resize(half)[[5, 58]] == [[0.0], [1.0]]).all()


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.zeros((0, 5), bool), r"not \[0, 5\]"),
        (np.zeros((1, 64, 64)), r"not \[1, 64, 64\]"),
        (np.full((8, 8), 255), "from 255 to 255"),
        (np.full((8, 8), np.nan), "nan"),
    ],
)
def test_what_is_no_mask_is_an_error(
    masks: Masks, mask: np.ndarray, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        masks.encode(mask)
    with pytest.raises(ValueError, match=r"\[2, 32, 32\]"):
        masks.encode_many(np.zeros((2, 32, 32)))


# --- files ---------------------------------------------------------------------------


def test_a_file_tells_its_own_widths(masks: Masks, tmp_path: Path) -> None:
    masks.save(tmp_path / FILE, torch.float32)
    again = Masks.load(tmp_path / FILE)
    np.testing.assert_array_equal(again.decode(CODES), masks.decode(CODES))
    masks.save(tmp_path / FILE)
    assert Masks.load(tmp_path / FILE).decode(CODES).dtype == np.float32


def test_running_means_of_the_codebook_are_not_the_codebook(
    masks: Masks, tmp_path: Path
) -> None:
    tensors = masks.autoencoder.state_dict()
    tensors |= {
        "_vq_vae._ema_w": tensors["_vq_vae._embedding"].flip(0).clone(),
        "_vq_vae._ema_cluster_size": torch.ones(128),
    }
    save_file(tensors, tmp_path / FILE)
    read = Masks.load(tmp_path / FILE)
    np.testing.assert_array_equal(read.decode(CODES), masks.decode(CODES))


def test_the_published_format_is_read_too(masks: Masks, tmp_path: Path) -> None:
    arrays = {k: v.numpy() for k, v in masks.autoencoder.state_dict().items()}
    np.savez(tmp_path / PUBLISHED, **arrays)
    read = Masks.load(tmp_path / PUBLISHED)
    np.testing.assert_array_equal(read.decode(CODES), masks.decode(CODES))
    whole = (tmp_path / PUBLISHED).read_bytes()
    for damaged in (b"", b"none", whole[: len(whole) // 2]):
        (tmp_path / PUBLISHED).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{PUBLISHED} holds no mask autoencoder"):
            Masks.load(tmp_path / PUBLISHED)


def test_a_file_that_is_no_autoencoder_is_an_error(
    masks: Masks, tmp_path: Path
) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match=FILE):
        Masks.load(path)
    tensors = masks.autoencoder.state_dict()
    for faulty, words in (
        ({k: v for k, v in tensors.items() if k != "decoder.6.weight"}, "decoder.6"),
        ({k: v for k, v in tensors.items() if k != "encoder.9.net.2.bias"}, "9.net.2"),
        (tensors | {"decoder.4.bias": torch.zeros(3)}, "decoder.4.bias"),
        (tensors | {"more": torch.zeros(3)}, "more"),
    ):
        save_file(faulty, path)
        with pytest.raises(ValueError, match=words):
            Masks.load(path)


def test_the_published_shapes_are_those_of_googles_file() -> None:
    """49 arrays of 8 466 372 bytes, two of them running means that are not needed."""
    shapes = {k: tuple(v.shape) for k, v in MaskAutoencoder().state_dict().items()}
    means = 4 * (128 * 512 + 128)
    assert len(shapes) == 47
    assert sum(4 * int(np.prod(s)) for s in shapes.values()) + means == 8_466_372
    assert shapes["decoder.6.weight"] == (128, 64, 4, 4)
    assert shapes["encoder.10.weight"] == (512, 128, 1, 1)


# --- from an answer to its masks -----------------------------------------------------


class Script:
    """A sampler that says what it was given."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def start(self):
        rest = iter(self.ids)
        return lambda logits: next(rest)


def test_a_folder_with_a_mask_file_gives_objects_with_masks(
    pairs: dict[str, Pair], masks: Masks, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(pairs["gemma"].folder, folder)
    said = "<loc0100><loc0200><loc0300><loc0400>"
    said += "".join(f"<seg{code:03d}>" for code in CODES) + " cat"

    def answer(engine: vlm.Engine) -> vlm.Answer:
        ids = engine.tokenizer.answer_ids(said)
        how = {"sampler": Script(ids), "max_tokens": len(ids), "stop": ()}
        return engine.generate(picture(), "segment cat", **how)

    (without,) = answer(vlm.load(folder, device="cpu")).objects
    assert without.mask is None and without.codes == CODES
    masks.save(folder / FILE, torch.float32)
    (cat,) = answer(vlm.load(folder, device="cpu")).objects
    assert cat.label == "cat"
    np.testing.assert_array_equal(cat.mask, masks.decode(CODES))


# --- the embedded model's own --------------------------------------------------------


def test_learning_masks_twice_writes_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "DRAWN", 100)
    monkeypatch.setattr(masking, "BATCH", 16)
    monkeypatch.setattr(masking, "LOG_EVERY", 2)
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        masking.train_masks(tmp_path / name, steps=4, seed=seed)
        files.append((tmp_path / name / FILE).read_bytes())
    assert files[0] == files[1] != files[2]
    assert len(files[0]) < 700_000
    assert len((tmp_path / "a" / "log.jsonl").read_text().splitlines()) == 2


def test_the_embedded_masks_come_back() -> None:
    stock = Stock(load_sprites(), backgrounds=8)
    truth = masking.draw_masks(np.random.default_rng(99), stock, 200)
    figures = masking.evaluate(Masks.load(EMBEDDED), truth)
    assert figures["iou"] > 0.9
    assert figures["codes"] > 64
    assert EMBEDDED.stat().st_size < 700_000


# --- the reference: float64, a tap of a kernel at a time -----------------------------


def decoded(state: State, codes: np.ndarray | tuple[int, ...]) -> np.ndarray:
    """[64, 64], unclipped."""
    x = state["_vq_vae._embedding"][np.reshape(codes, (4, 4))].transpose(2, 0, 1)
    x = np.maximum(convolve(state, "decoder.0", x), 0)
    x = residual(state, "decoder.3", residual(state, "decoder.2", x))
    for n in (4, 6, 8, 10):
        x = np.maximum(spread(state, f"decoder.{n}", x), 0)
    return convolve(state, "decoder.12", x)[0]


def as_mask(x: np.ndarray) -> np.ndarray:
    return np.clip(x * 0.5 + 0.5, 0, 1)


def encoded(state: State, mask: np.ndarray) -> np.ndarray:
    """[4, 4, code]."""
    x = mask[None].astype(np.float64) * 2 - 1
    for n in (0, 2, 4, 6):
        x = np.maximum(convolve(state, f"encoder.{n}", x, stride=2, pad=1), 0)
    x = residual(state, "encoder.9", residual(state, "encoder.8", x))
    return convolve(state, "encoder.10", x).transpose(1, 2, 0)


def residual(state: State, name: str, x: np.ndarray) -> np.ndarray:
    pad = state[f"{name}.net.0.weight"].shape[2] // 2
    y = np.maximum(convolve(state, f"{name}.net.0", x, pad=pad), 0)
    y = np.maximum(convolve(state, f"{name}.net.2", y, pad=pad), 0)
    return x + convolve(state, f"{name}.net.4", y)


def convolve(
    state: State, name: str, x: np.ndarray, *, stride: int = 1, pad: int = 0
) -> np.ndarray:
    """x [in, H, W] with weight [out, in, k, k]."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    side = weight.shape[-1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    high, wide = ((n - side) // stride + 1 for n in x.shape[1:])
    y = np.zeros((len(weight), high, wide)) + bias[:, None, None]
    for i in range(side):
        for j in range(side):
            seen = x[:, i : i + stride * high : stride, j : j + stride * wide : stride]
            y += np.einsum("oi,ihw->ohw", weight[:, :, i, j], seen)
    return y


def spread(state: State, name: str, x: np.ndarray) -> np.ndarray:
    """Transposed: each pixel of x [in, H, W] adds a kernel [in, out, 4, 4] to y."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    _, high, wide = x.shape
    y = np.zeros((weight.shape[1], 2 * high + 2, 2 * wide + 2))
    for i in range(4):
        for j in range(4):
            part = np.einsum("io,ihw->ohw", weight[:, :, i, j], x)
            y[:, i : i + 2 * high : 2, j : j + 2 * wide : 2] += part
    return y[:, 1:-1, 1:-1] + bias[:, None, None]
