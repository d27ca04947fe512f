"""Five tests of what an answer token rests on, by name; each tells how far it has come.

    asked = Asked(engine, image, "detect cat", ids)
    for done, of, found in TRIALS["knockout"].run(asked, 0, heat=heat):
        print(f"{done} of {of}")

They cost from two passes to some hundred. What is found so far is made of lists, names
and numbers alone, None where nothing is known yet: it is for the page and its API.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vlm.probes.asked import Asked
from vlm.probes.attention import region_balance
from vlm.probes.faithfulness import Curve, deleting, inserting, random_order
from vlm.probes.knockout import Knockout
from vlm.probes.lens import logit_lens
from vlm.probes.methods import recorded
from vlm.probes.news import News, Telling
from vlm.probes.patching import Noise, activation_patching
from vlm.probes.positions import Group, mask_of
from vlm.probes.sanity import shuffling
from vlm.probes.scores import Box, patches_in
from vlm.tap import Layout

TOP = 3  # pieces of each layer
HOTTEST = 10  # of so many patches, one is cut
DRAWS = 5  # of random patches
STEPS = 8  # of a curve
MAX_POSITIONS = 48  # of the text, those nearest to the token

Heat = Tensor | Sequence[Sequence[float]]  # [rows, columns]


@dataclass(frozen=True)
class Trial:
    """A test of one answer token.

    Attributes:
        title: its name, for people.
        shows, hides: what it tells, and what it does not.
        run: of a question, the index of an answer token, and options by name.
    """

    title: str
    shows: str
    hides: str
    run: Callable[..., Iterator[News]]


def layer_by_layer(asked: Asked, index: int) -> Iterator[News]:
    """`logit_lens` and `region_balance` of the row that led to answer token `index`.

    Finds layers (the embedding is -1), of each the token's probability, the `top`
    pieces as text, id and probability, and of each but the embedding the balance of
    its attention: image, bos, prompt, answer.

    Raises:
        ValueError: the answer has no such token.
    """
    lens = logit_lens(asked, index, top=TOP, embedding=True)
    short = replace(asked, answer=asked.answer[: index + 1])
    piece = asked.engine.tokenizer.piece
    top = [
        [
            {"text": piece(id), "id": id, "probability": chance}
            for id, chance in zip(ids, chances)
        ]
        for ids, chances in zip(lens.ids.tolist(), lens.probabilities.tolist())
    ]
    found = {
        "layers": list(lens.layers),
        "probability": lens.probability.tolist(),
        "top": top,
        "balance": region_balance(recorded(short), index).tolist(),
    }
    yield News(2, 2, found)


def cutting(
    asked: Asked,
    index: int,
    *,
    heat: Heat,
    box: Box | None = None,
    rows: Literal["answer", "text", "all"] = "answer",
) -> Iterator[News]:
    """Change of the token's log-probability under `Knockout`, of patches and of heads.

    Finds the probability before; `cuts` of patches (of the box, all others, the hottest
    tenth of the map), each with its name, count and change and, as `random`, the mean
    change of as many random patches; and the change by each of the heads [layers,
    heads] that is silenced alone.

    Raises:
        ValueError: there is no such token or choice of rows, or the map or the box are
            none of this picture's.
    """
    config = asked.engine.config
    layers, heads = config.decoder.depth, config.decoder.heads
    grid = config.vision.grid
    cuts = {"hottest": _hottest(heat, grid)}
    if box is not None:
        inside = patches_in(box, grid)
        cuts = {"box": inside, "others": ~inside, **cuts}
    features = asked.engine.look(asked.image)
    # Before anything is computed, so that it is known at once what cannot be.
    edits = {
        name: Knockout(asked, index, patches=cuts[name], rows=rows) for name in cuts
    }
    before = asked.log_probability(index, features=features)

    def change(edit: Knockout) -> float:
        after = asked.log_probability(index, features=features, edit=edit)
        return float(after - before)

    told = [
        {"name": name, "count": int(cut.sum()), "change": None, "random": None}
        for name, cut in cuts.items()
    ]
    grown = [[None] * heads for _ in range(layers)]
    found = {"probability": float(before.exp()), "cuts": told, "heads": grown}
    telling = Telling(1 + len(cuts) * (1 + DRAWS) + layers * heads, found)
    yield telling.one_more()
    for each in told:
        each["change"] = change(edits[each["name"]])
        yield telling.one_more()
    for each in told:
        draws = []
        for seed in range(DRAWS):
            patches = _first(random_order(grid, seed=seed), each["count"])
            draws.append(change(Knockout(asked, index, patches=patches, rows=rows)))
            yield telling.one_more()
        each["random"] = sum(draws) / DRAWS
    for layer in range(layers):
        for head in range(heads):
            silent = Knockout(asked, index, heads=[(layer, head)])
            grown[layer][head] = change(silent)
            yield telling.one_more()


def taking_away(asked: Asked, index: int, *, heat: Heat) -> Iterator[News]:
    """`deletion` and `insertion` of a map, and of a random order.

    Finds for each of the two the curves `heat` and `random`: shares, probabilities,
    and the area once they are whole.

    Raises:
        ValueError: there is no such token, or the map is none of this picture's.
    """
    grid = asked.engine.config.vision.grid
    steps = min(STEPS, grid**2)
    orders = {"heat": torch.as_tensor(heat), "random": random_order(grid)}
    curves = {
        (way, name): growing(asked, index, order, steps=steps)
        for way, growing in (("deletion", deleting), ("insertion", inserting))
        for name, order in orders.items()
    }
    found = {way: dict.fromkeys(orders) for way in ("deletion", "insertion")}
    telling = Telling(len(curves) * (steps + 1), found)
    for (way, name), curve in curves.items():
        for so_far in curve:
            found[way][name] = _told(so_far, steps)
            yield telling.one_more()


def putting_back(
    asked: Asked, index: int, *, layer: int, other: Image.Image | None = None
) -> Iterator[News]:
    """`activation_patching`: layer by layer, and position by position after `layer`.

    What is corrupted is the image by noise, or all of it is asked about the `other`
    picture. Finds the probability of the token `clean` and `corrupt`; layers (-1 is
    the embedding) and the scores of restoring the `image` or the `last` row after
    each; and positions, each with its kind, text and score. Of a long text only the
    positions nearest to the token are tried.

    Raises:
        ValueError: there is no such token or layer, or the corrupted picture is as
            good as the clean one.
    """
    where, engine = asked.layout(index), asked.engine
    corrupt = Noise() if other is None else asked.of(other)
    clean = float(asked.log_probability(index).exp())
    if isinstance(corrupt, Noise):
        noisy = corrupt.on(engine.look(asked.image))
        worse = float(asked.log_probability(index, features=noisy).exp())
    else:
        worse = float(corrupt.log_probability(index).exp())
    groups = _groups(where)
    ids = engine.ids(asked.prompt, asked.answer[:index])
    layers = list(range(-1, where.layers))
    found = {
        "clean": clean,
        "corrupt": worse,
        "layers": layers,
        "image": [None] * len(layers),
        "last": [None] * len(layers),
        "layer": layer,
        "positions": [
            {**_named(group, where, ids, engine.tokenizer.piece), "score": None}
            for group in groups
        ],
    }
    telling = Telling(len(groups) + 2 * len(layers), found)
    patching = {"clean": asked, "corrupt": corrupt, "index": index}
    scores = activation_patching(**patching, axis="position", at=layer, groups=groups)
    for at, (_, score) in enumerate(scores):
        found["positions"][at]["score"] = score
        yield telling.one_more()
    for name, group in (("image", "image"), ("last", groups[-1])):
        scores = activation_patching(**patching, axis="layer", at=group)
        for at, (_, score) in enumerate(scores):
            found[name][at] = score
            yield telling.one_more()


TRIALS = {
    "layers": Trial(
        "Layer by layer",
        "What the head would say after each layer, at the row that led to the token, "
        "and on what that row's attention lay: where the choice was made.",
        "The head was trained for the last layer only. In the layers before, the token "
        "may be there in a form that it cannot read.",
        layer_by_layer,
    ),
    "knockout": Trial(
        "Cut it off",
        "How much less likely the token becomes when some patches are no longer seen, "
        "beside as many random ones; and when a head gives nothing.",
        "The patches stay in the picture, and what others read from them before may "
        "come another way: cut it for everyone. Heads can stand in for each other.",
        cutting,
    ),
    "faithfulness": Trial(
        "Take it away",
        "The token's probability while patches are painted over, or come back, the "
        "hottest of the map first. A good map does it sooner than a random order.",
        "A picture with holes is one the model never saw: compare maps, and not with "
        "1. One random order stands for all.",
        taking_away,
    ),
    "patching": Trial(
        "Put it back",
        "The pass is spoilt, then a part of the unspoilt one is put in: how much of "
        "the token's score comes back. 1 is all of it, 0 is none.",
        "A part that mends it is enough, not needed. Behind the place where it all "
        "flows together, everything before seems to matter little.",
        putting_back,
    ),
    "shuffled": Trial(
        "Shuffle it",
        "Every way's map again, of a model whose decoder's weights are shuffled. A map "
        "that stays what it is shows the picture, and not what was learnt.",
        "The order of all patches is compared, of cold ones too. A map that changes is "
        "not right for that.",
        shuffling,
    ),
}


def _hottest(heat: Heat, grid: int) -> Tensor:
    heat = torch.as_tensor(heat)
    if heat.shape != (grid, grid):
        raise ValueError(f"the map is {tuple(heat.shape)}, the grid {(grid, grid)}")
    return _first(heat, max(1, grid**2 // HOTTEST))


def _first(heat: Tensor, count: int) -> Tensor:
    """The hottest patches, bool [rows, columns]; of equal ones the first."""
    order = heat.flatten().argsort(descending=True, stable=True)
    mask = torch.zeros(heat.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(heat.shape)


def _told(curve: Curve, steps: int) -> dict[str, Any]:
    return {
        "shares": list(curve.shares),
        "probabilities": list(curve.probabilities),
        "area": curve.area if len(curve.shares) > steps else None,
    }


def _groups(where: Layout) -> list[Group]:
    """The image, bos, and each token of the text; the last one led to the token."""
    prompt = [("prompt", number) for number in range(1, where.prompt)]
    answer = [("answer", number) for number in range(where.forced)]
    return ["image", "bos", *[*prompt, *answer][-MAX_POSITIONS:]]


def _named(
    group: Group, where: Layout, ids: Sequence[int], piece: Callable[[int], str]
) -> dict[str, str]:
    if group == "image":
        return {"kind": "image", "text": ""}
    (at,) = mask_of(where, group).nonzero().flatten().tolist()
    kind = group if isinstance(group, str) else group[0]
    return {"kind": kind, "text": piece(ids[at - where.image])}
