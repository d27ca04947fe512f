"""The named endpoints, for `gradio_client`, plain HTTP, and as the tools of MCP.

    client = Client("http://127.0.0.1:7860")
    client.predict(handle_file("cat.jpg"), "cat ; dog", api_name="/detect")

What callers read of an endpoint is its docstring, of each parameter one line, and the
types. Gradio takes those as they stand, so annotations are not postponed here.
"""

from collections.abc import Iterator
from typing import Any, Literal

import gradio as gr

from vlm.ui import pictures, view
from vlm.ui.api_try import Try
from vlm.ui.api_why import Why
from vlm.ui.asking import MAX_TOKENS, STYLES
from vlm.ui.callers import Caller, last, named, sent
from vlm.ui.masked import masked
from vlm.ui.models import Models
from vlm.ui.refusing import refusing, refusing_all
from vlm.ui.replies import (
    Detected,
    MaskTokens,
    Probed,
    Segmented,
    probed,
    thing,
    whole_mask,
)


def build(engines: Models) -> None:
    """Add the endpoints to the Blocks that is open."""
    api, why, trial = Api(engines), Why(engines), Try(engines)
    for endpoint in (
        api.probe,
        api.detect,
        api.segment,
        api.mask_tokens,
        why.attention,
        why.explain,
        trial.logit_lens,
        trial.knockout,
        trial.faithfulness,
        trial.patching,
        trial.shuffled,
    ):
        gr.api(endpoint, concurrency_limit=1, concurrency_id="model")


class Api(Caller):
    """Each public method is an endpoint of its name, and an MCP tool."""

    def probe(
        self,
        image: gr.FileData,
        prompt: str,
        start: str = "",
        style: Literal[STYLES] = STYLES[0],
        temperature: float = 1.0,
        top_p: float = 0.9,
        top_k: int = 40,
        seed: int = 0,
        tries: int = 1,
        max_tokens: int = 256,
        model: str = "",
        images: list[gr.FileData] | None = None,
    ) -> Iterator[Probed]:
        """Ask a PaliGemma model anything about a picture, in its own grammar.

        Streams the answer as it grows. Each token comes with its probability and the
        share of its attention that lay on the image, each box in pixels of the
        picture as x1, y1, x2, y2; an edge is null until it is decoded. Of several
        pictures, boxes are in pixels of the first: an answer does not say which.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            prompt: such as "caption en", "answer en how many?" or "detect cat ; dog"
            start: text that the answer must begin with
            style: how the next token is drawn
            temperature: above 1 more daring, below 1 more careful; not for Greedy
            top_p: for Top-p: draw among the best that together have this probability
            top_k: for Top-k: draw among this many
            seed: the same seed gives the same answer
            tries: draw so many answers and give the most probable; Greedy has just one
            max_tokens: cut the answer behind so many, up to 512
            model: its name, if several are loaded; the first one if left out
            images: further pictures, up to 15, read behind the first one

        Returns:
            text, tokens, objects with boxes, done, whether it was cut, seconds and rate
        """
        seen = self._views(
            image,
            prompt,
            model,
            start=start,
            style=style,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            tries=tries,
            max_tokens=max_tokens,
            images=images,
        )
        for now in refusing_all(seen):
            yield probed(now)

    def detect(
        self,
        image: gr.FileData,
        things: str,
        max_tokens: int = MAX_TOKENS,
        model: str = "",
    ) -> Detected:
        """Find things in a picture: a box for each one of them that is there.

        A box is x1, y1, x2, y2 in pixels of the picture. The confidence is the model's
        own score. `duplicate` is the number of an earlier object that is the same
        again. An answer that was cut may end with a box that lacks edges (null).

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            things: what to look for, with a semicolon between: "cat ; dog"
            max_tokens: cut the answer behind so many, up to 512
            model: its name, if several are loaded; the first one if left out

        Returns:
            the objects, the answer as the model wrote it, and whether it was cut
        """
        now = refusing(self._found, image, "detect", things, max_tokens, model)
        objects = [thing(each) for each in now["objects"]]
        return {"objects": objects, "text": now["text"], "cut": now["cut"]}

    def segment(
        self,
        image: gr.FileData,
        things: str,
        max_tokens: int = MAX_TOKENS,
        model: str = "",
    ) -> Segmented:
        """Find things in a picture: a box and a mask for each of them that is there.

        A mask is a data URL of a PNG that is as large as the picture: white is the
        thing, black is the rest. (If the picture is longer than 2048 pixels the mask
        is that long, and is to be stretched over it.) It is null where the model gave
        none or cut it short, and with models that come without a decoder of masks.

        Parameters:
            image: the picture: PNG, JPEG, WebP, GIF, BMP or TIFF
            things: what to look for, with a semicolon between: "cat ; dog"
            max_tokens: cut the answer behind so many, up to 512; a mask takes about 21
            model: its name, if several are loaded; the first one if left out

        Returns:
            the objects, the answer as the model wrote it, and whether it was cut
        """
        now = refusing(self._found, image, "segment", things, max_tokens, model)
        size = now["width"], now["height"]
        objects = [
            {**thing(each), "mask": whole_mask(each, size)} for each in now["objects"]
        ]
        return {"objects": objects, "text": now["text"], "cut": now["cut"]}

    def mask_tokens(self, mask: gr.FileData, model: str = "") -> MaskTokens:
        """A mask as the tokens that PaliGemma would write for it: the way back.

        The text, 4 <loc> and 16 <seg>, can be the `start` of an answer to "segment
        cat", to ask a model what it thinks of this mask. Places are in 1/1024 of a
        side. What 16 codes keep of the mask is told as intersection over union, `iou`.

        Parameters:
            mask: a picture of the picture's proportions: white is the thing, black not
            model: its name, if several are loaded; the first one if left out

        Returns:
            the text, the box that it tells, in pixels of the mask, and the iou
        """
        return refusing(self._mask_tokens, mask, model)

    def _mask_tokens(self, mask: Any, model: str) -> MaskTokens:
        engine = self._engines[named(self._engines, model)]
        picture = pictures.read(sent(mask))
        said = masked(engine, pictures.white(picture))
        edges = zip(said.box, picture.size * 2, strict=True)
        box = [round(share * side, 1) for share, side in edges]
        return {"text": said.text, "box": box, "iou": said.iou}

    def _found(
        self, image: Any, task: str, things: str, max_tokens: int, model: str
    ) -> view.View:
        names = things.split(";") if isinstance(things, str) else []
        listed = " ; ".join(name.strip() for name in names if name.strip())
        if not listed:
            raise ValueError('Say what to look for, such as "cat" or "cat ; dog".')
        prompt = f"{task} {listed}"
        return last(self._views(image, prompt, model, max_tokens=max_tokens))
