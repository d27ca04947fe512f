"""Engine: a loaded checkpoint that looks, answers and shows how it got there.

    engine = load("assets/tiny")
    for step in engine.stream(image, "detect cat"):
        print(step.text, end="", flush=True)

The model is shared between requests; whatever belongs to one request (cache, tap,
sampler) is made here and passed down.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm import arithmetic, checkpoint, mask_file
from vlm.answer import Answer, Candidate, Step, Timing
from vlm.cache import KVCache
from vlm.edit import LEAVE, Edit
from vlm.graphs import Graphs
from vlm.grounding import objects
from vlm.image import image_key, pixels
from vlm.kept import Kept
from vlm.masks import Masks
from vlm.paligemma import PaliGemma
from vlm.prefix import Prefix, PrefixAttention, prefix_bytes
from vlm.samplers import Greedy, Sampler, finite, greedy, likeliest
from vlm.tap import LOOK_AWAY, Layout, Tap, Taps
from vlm.tokenizer import Tokenizer
from vlm.trace import ImageShare

Decode = Callable[[int], Tensor]

CANDIDATES = 5
KEPT_FEATURES = KEPT_PREFIXES = 256 << 20  # bytes


def load(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Engine:
    """Load a PaliGemma 1 or 2 checkpoint in Hugging Face layout.

    Objects come with masks where a masks.safetensors or Google's vae-oid.npz lies
    beside the weights, or the latter in the Hub's cache; what is loaded by name
    fetches it.

    Args:
        source: a folder, or a Hub name such as "google/paligemma2-3b-mix-224", and
            "@" with a revision behind it if that is not given otherwise.
        device: "auto" takes the GPU where there is one, spreads a model that is too
            large over several, and leaves on the CPU what does not fit.
        dtype: a torch dtype or its name; "auto" keeps what the files hold, except
            that a small model computes in float32 on a CPU.
        quantize: "int8" rounds weights and what is multiplied with them, on a CPU:
            faster, and nearly the same answers. "none" does not, nor does "auto" until
            int8 has been shown to keep a checkpoint's answers.
        revision, token: for the Hub.
        progress: told in words what is being done.
    Raises:
        ValueError: what is wrong with the checkpoint or the arguments, and what to do.
    """
    arithmetic.check(quantize)
    if quantize == "int8" and str(dtype) != "auto":
        raise ValueError(
            f"int8 goes with float32 between its products, not with dtype {dtype!r}: "
            "leave one of the two out"
        )
    tell = progress or (lambda words: None)
    tell(f"Looking for {source}")
    folder = checkpoint.find(source, revision=revision, token=token, progress=progress)
    config = checkpoint.read_config(folder)
    tokenizer = Tokenizer.load(
        folder, config.image_token, size=config.decoder.vocabulary
    )
    tell("Reading weights")
    model = checkpoint.load_model(folder, config, device=device, dtype=dtype)
    computing = arithmetic.settle(model, folder, quantize, progress=tell)
    name = Path(source).name if Path(source).is_dir() else str(source)
    by_name = not Path(source).is_dir()
    drawn_by = mask_file.find(folder, fetch=by_name, token=token, tell=tell)
    masks = Masks.load(drawn_by) if drawn_by else None
    return Engine(model, tokenizer, name=name, masks=masks, arithmetic=computing)


class Engine:
    """A model, its tokenizer, and what is kept between questions."""

    def __init__(
        self,
        model: PaliGemma,
        tokenizer: Tokenizer,
        *,
        name: str = "paligemma",
        masks: Masks | None = None,
        arithmetic: str | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config
        self.name = name
        self.masks = masks
        self.arithmetic = arithmetic or str(self.dtype).removeprefix("torch.")
        self.threads: int | None = None  # of torch's; None: as many as it is set to
        self.features = Kept(KEPT_FEATURES)
        self.prefixes = Kept(KEPT_PREFIXES)
        self.graphs = Graphs(model)

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        parameter = self.model.decoder.norm.scale
        hook = getattr(self.model.decoder.norm, "_hf_hook", None)
        place = getattr(hook, "execution_device", None)
        return parameter.device if place is None else torch.device(place)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs, and of what passes between the layers."""
        return self.model.vision.patches.weight.dtype

    def describe(self) -> dict[str, Any]:
        """What is loaded, where, how large, and in which arithmetic it computes."""
        decoder = self.config.decoder
        row = 2 * decoder.depth * decoder.kv_heads * decoder.head_size
        return {
            "name": self.name,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "arithmetic": self.arithmetic,
            "parameters": sum(t.numel() for t in checkpoint.named(self.model).values()),
            "layers": decoder.depth,
            "heads": decoder.heads,
            "grid": [self.config.vision.grid] * 2,
            "image_size": self.config.vision.image_size,
            "tasks": list(self.config.tasks),
            "note": self.config.note,
            "cache_bytes": row * self.dtype.itemsize,  # for each position
        }

    def settle_threads(self) -> None:
        """From now on take as many of torch's threads as write answers soonest.

        That is measured, and torch's present number is the most it may be.
        """
        self.threads = arithmetic.threads(self.model)

    @torch.no_grad()
    def look(
        self,
        image: Image.Image | Sequence[Image.Image],
        tap: Tap = LOOK_AWAY,
        *,
        keep: bool = True,
    ) -> Tensor:
        """Image features [1, images * P, D]: vision tower and projector.

        Each image is looked at by itself, once: its features are kept by its content,
        least recently used first to go. A tap that asks for the vision tower is shown
        a pass of its own. Without `keep` it is as if nothing were kept: a picture that
        is asked about once, out of many, must not push out the others.
        """
        looks = [self._look(each, tap, keep) for each in self._images(image)]
        return looks[0] if len(looks) == 1 else torch.cat(looks, dim=1)

    def _look(self, image: Image.Image, tap: Tap, keep: bool) -> Tensor:
        watched = "vision" in tap.towers
        key = image_key(image) if keep else ""
        kept = None if watched or not keep else self.features.get(key)
        if kept is None:
            config = self.config.vision
            x = pixels(image, config.image_size, channels=config.channels)
            x = x.to(self.device, self.dtype)
            self._set_threads()
            kept = self.model.look(x, tap) if watched else self.model.look(x)
            if keep:
                self.features.put(key, kept)
        return kept

    def stream(
        self,
        image: Image.Image | Sequence[Image.Image],
        prompt: str,
        *,
        answer: str | Sequence[int] = "",
        sampler: Sampler = greedy,
        max_tokens: int = 256,
        tap: Tap | None = None,
        stop: Collection[int] | None = None,
        echo: bool = False,
    ) -> Iterator[Step]:
        """Answer token by token.

        Closing the iterator ends the work and frees the cache.

        Args:
            image: one, or several, as they are to be read: frames of a video, or two
                that are compared. A checkpoint that was trained on one (all that are
                not made for just that) answers poorly about several.
            answer: a forced start, as text or as ids. Its tokens are not yielded, but
                they count: the first step's index is their number.
            echo: yield the tokens of the forced start too, each with the probability
                that the model gave it.
            stop: ids that end the answer and are not yielded; None for the
                checkpoint's own, () for never.
            max_tokens: at most so many steps.
            tap: shown every pass.
        Raises:
            ValueError: no image, an empty prompt, max_tokens below one, or more than
                the decoder has positions for; and while it answers, logits that are
                no numbers.
        """
        images = self._images(image)
        if not prompt.strip():
            raise ValueError('the prompt is empty: try "caption en" or "detect cat"')
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
        ends = frozenset(self.config.eos if stop is None else stop)
        sequence = self._sequence(len(images), prompt, answer)
        return self._stream(images, sequence, sampler, max_tokens, tap, ends, echo)

    def score(
        self,
        image: Image.Image | Sequence[Image.Image],
        prompt: str,
        answer: str | Sequence[int],
        *,
        tap: Tap | None = None,
    ) -> tuple[Step, ...]:
        """What the model thinks of a given answer: its tokens as steps, in one pass.

        Raises:
            ValueError: no image, or an empty prompt.
        """
        count = len(self.ids("", answer)) - len(self.ids(""))
        steps = self.stream(image, prompt, answer=answer, tap=tap, echo=True)
        with contextlib.closing(steps):
            return tuple(islice(steps, count))

    def generate(
        self, image: Image.Image | Sequence[Image.Image], prompt: str, **how: Any
    ) -> Answer:
        """The whole answer at once; arguments as those of `stream`.

        An answer about several images does not say which of them a box is in: the
        boxes are in pixels of the first.
        """
        start = time.perf_counter()
        steps, first = [], None
        for step in self.stream(image, prompt, **how):
            first = first or time.perf_counter() - start
            steps.append(step)
        total = time.perf_counter() - start
        size = self._images(image)[0].size
        return Answer(
            text=self.tokenizer.decode(step.token for step in steps),
            steps=tuple(steps),
            objects=tuple(objects(steps, size, masks=self.masks)),
            timing=Timing(first_token=first or total, total=total, tokens=len(steps)),
        )

    def logits(
        self,
        image: Image.Image | Sequence[Image.Image],
        prompt: str,
        answer: str | Sequence[int] = "",
        *,
        features: Tensor | None = None,
        tap: Tap = LOOK_AWAY,
        edit: Edit = LEAVE,
        keep: bool = True,
    ) -> Tensor:
        """float32 [T, V] of one teacher-forced pass; T is `len(ids(prompt, answer))`.

        Row t predicts what follows id t; the last one predicts the next token.

        Args:
            features: [1, images * P, D] in place of what was seen in the images. Where
                they require gradients, the logits have them.
            tap: shown the pass.
            edit: what is to be done otherwise in it.
            keep: what is seen in the images, for another question; see `look`.
        """
        images = self._images(image)
        ids, layout = self._sequence(len(images), prompt, answer)
        tap.layout(layout)
        if features is None:
            features = self.look(images, tap, keep=keep)
        text = layout.prompt + layout.forced
        with torch.set_grad_enabled(features.requires_grad):
            # All of the states, as a tap or an edit may be about any of them.
            states = self._prefill(ids, layout, features, tap=tap, edit=edit)
            return self.model.decoder.logits(states[:, -text:])[0]

    def ids(self, prompt: str, answer: str | Sequence[int] = "") -> list[int]:
        """Exactly the ids that the model sees behind the image tokens."""
        return self.tokenizer.text_ids(prompt) + self._answer_ids(answer)

    @torch.no_grad()
    def step(
        self, index: int, token: int, text: str, logits: Tensor, share: float
    ) -> Step:
        """What there is to say of a token whose row of logits was [V]."""
        chances = logits.softmax(-1)
        values, others = likeliest(chances, CANDIDATES)
        candidates = tuple(
            Candidate(other, self.tokenizer.piece(other), chance)
            for chance, other in zip(values.tolist(), others.tolist())
        )
        loc = self.tokenizer.loc(token)
        first = self.tokenizer.first_loc
        bins = logits[first : first + 1024].softmax(-1)
        return Step(
            index=index,
            token=token,
            text=text,
            probability=float(chances[token]),
            candidates=candidates,
            image_share=share,
            loc=loc,
            seg=self.tokenizer.seg(token),
            bin_probability=None if loc is None else float(bins[loc]),
            bins=None if loc is None else bins.float().cpu().numpy(),
        )

    def _prefill(
        self, ids: list[int], layout: Layout, features: Tensor, **how: Any
    ) -> Tensor:
        """States [1, T, D] of one pass from the first image token on."""
        row = torch.tensor([ids], device=self.device)
        prefix = torch.arange(len(ids), device=self.device)[None] < layout.prefix
        self._set_threads()
        return self.model.states(row, features, prefix=prefix, **how)

    @torch.no_grad()
    def _prefix(
        self, images: Sequence[Image.Image], ids: list[int], layout: Layout, tap: Tap
    ) -> Prefix:
        """Image and prompt, read now or for an earlier question that was the same."""
        key = (*map(image_key, images), *ids)
        replayed = tap.attention_only and "vision" not in tap.towers
        kept = self.prefixes.get(key) if replayed else None
        if kept is not None:
            kept.show(tap)
            return kept
        features = self.look(images, tap)
        decoder = self.config.decoder
        size = prefix_bytes(decoder, len(ids), features.element_size())
        worth = size <= self.prefixes.limit
        attention = PrefixAttention()
        cache = KVCache(decoder.depth, len(ids))
        states = self._prefill(
            ids,
            layout,
            features,
            cache=cache,
            tap=Taps(attention, tap) if worth else tap,
            last=1 if tap.attention_only else 0,
        )
        # What is no number must not be kept for others who ask the same.
        (logits,) = finite([self.model.decoder.logits(states[:, -1:])[0, -1]])
        read = Prefix(cache, logits, tuple(attention.layers))
        if worth:
            self.prefixes.put(key, read)
        return read

    def _stream(
        self,
        images: Sequence[Image.Image],
        sequence: tuple[list[int], Layout],
        sampler: Sampler,
        max_tokens: int,
        tap: Tap | None,
        ends: frozenset[int],
        echo: bool,
    ) -> Iterator[Step]:
        ids, layout = sequence
        share = ImageShare()
        tap = share if tap is None else Taps(share, tap)
        tap.layout(layout)
        pick = sampler.start()
        text = self.tokenizer.stream()
        prefix = self._prefix(images, ids[: layout.prefix], layout, tap)
        cache = prefix.cache.copy(len(ids) + max_tokens - 1)  # the last is not read
        # A copy, as a sampler may write to what it is given.
        logits, (seen,) = prefix.logits.clone(), share.take()
        if forced := ids[layout.prefix :]:
            rows = finite(self._decode(forced, cache, tap, last=0 if echo else 1))
            shares = share.take()
            if echo:
                known = zip(forced, [logits, *rows], [seen, *shares])
                for index, (token, *row) in enumerate(known):
                    yield self.step(index, token, text.add(token), *row)
            logits, seen = rows[-1], shares[-1]
        end = layout.forced + max_tokens
        with contextlib.ExitStack() as stack:
            decode: Decode | None = None
            for index in range(layout.forced, end):
                token = pick(logits)
                if token in ends:
                    return
                yield self.step(index, token, text.add(token), logits, seen)
                if index + 1 == end:
                    return
                # Not sooner, as the first token needs no more than the prefix.
                if decode is None:
                    decode = stack.enter_context(self._decoding(cache, tap, sampler))
                (logits,) = finite([decode(token)])
                (seen,) = share.take()

    @contextlib.contextmanager
    def _decoding(self, cache: KVCache, tap: Tap, sampler: Sampler) -> Iterator[Decode]:
        """Logits [V] behind one token after the other: replayed, where that can be."""
        ahead = isinstance(sampler, Greedy)
        lease = self.graphs.lease(cache, ahead=ahead)
        # A replay shows attention and nothing else.
        with lease if tap.attention_only else contextlib.nullcontext() as step:
            if step is None:
                yield lambda token: self._decode([token], cache, tap)[-1]
            else:
                yield lambda token: step(token, tap)

    @torch.no_grad()
    def _decode(
        self, tokens: list[int], cache: KVCache, tap: Tap, last: int = 0
    ) -> Tensor:
        """Logits [T, V] behind the last of those tokens, or behind all of them."""
        ids = torch.tensor([tokens], device=self.device)
        self._set_threads()
        # Thousands of calls, each of which is sooner done in this mode.
        with torch.inference_mode():
            states = self.model.states(ids, cache=cache, tap=tap, last=last)
        # Outside of it, so that they can be written to.
        return self.model.decoder.logits(states)[0]

    def _set_threads(self) -> None:
        # torch has a number for each thread, and each step may come from another.
        if self.threads and self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)

    def _sequence(
        self, images: int, prompt: str, answer: str | Sequence[int]
    ) -> tuple[list[int], Layout]:
        text = self.tokenizer.text_ids(prompt)
        forced = self._answer_ids(answer)
        layout = Layout(
            layers=self.config.decoder.depth,
            images=images,
            grid=self.config.vision.grid,
            prompt=len(text),
            forced=len(forced),
        )
        longest = self.config.decoder.positions
        if (length := layout.prefix + layout.forced) > longest:
            raise ValueError(
                f"this decoder was made for {longest} positions, and {length} are "
                f"needed: {layout.images} x {layout.grid**2} for images, {len(text)} "
                f"for the prompt, {len(forced)} for the start of the answer"
            )
        return [self.config.image_token] * layout.image + text + forced, layout

    def _answer_ids(self, answer: str | Sequence[int]) -> list[int]:
        if isinstance(answer, str):
            return self.tokenizer.answer_ids(answer)
        size = self.tokenizer.size
        if unknown := [token for token in answer if not 0 <= token < size]:
            raise ValueError(f"token {unknown[0]} is none of the {size} that there are")
        return list(answer)

    def _images(
        self, image: Image.Image | Sequence[Image.Image]
    ) -> Sequence[Image.Image]:
        images = [image] if isinstance(image, Image.Image) else image
        if not images or not all(isinstance(one, Image.Image) for one in images):
            raise ValueError(
                "give a PIL image, such as Image.open('cat.jpg'), or a list of them"
            )
        return images
