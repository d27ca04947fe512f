"""PaliScope: see what PaliGemma sees. `python app.py --help` shows the options."""

import argparse
import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # a million objects come with the imports, and none of them is garbage

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Gradio keeps times of so many questions, and goes through them all after each.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")

if os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true"):
    import spaces  # the Space brings it; before torch, which it makes believe in a GPU

import torch

import vlm
from vlm.ui import zero
from vlm.ui.models import Models, named

ZERO_GPU = "spaces" in globals()
HERE = Path(__file__).resolve().parent
TINY = str(HERE / "assets" / "tiny")
TINY_PAIR = str(HERE / "assets" / "tiny-pair")


def main() -> None:
    options = parse()
    try:
        if options.mcp and importlib.util.find_spec("mcp") is None:
            raise ValueError('--mcp needs one more package: pip install "gradio[mcp]"')
        models, pair = load(options), pair_of(options)
        if options.pair:
            pair()  # what is wrong with it is told now
        if ZERO_GPU:
            zero.open_room(spaces.GPU, [*models, *([pair()] if pair else [])])
        # Only now: to import Gradio takes seconds, in which a small model is loaded.
        from vlm.ui import page

        models.wait(0)  # what is wrong with a model is known by now, or takes long
        demo = page.build(models, HERE / "assets" / "examples", pair=pair)
        page.launch(
            demo,
            server_port=options.port,
            share=options.share,
            mcp_server=options.mcp,
            prevent_thread_lock=True,
        )
        gc.enable()
        models.wait()
        # What was made so far stays. Python looks for garbage only in what comes from
        # now on, so far more often, and that of many visits does not pile up.
        gc.collect()
        gc.freeze()
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr, flush=True)
        # Not sys.exit: it aborts where a thread is still loading weights in C++.
        os._exit(2)
    demo.block_thread()


def load(options: argparse.Namespace) -> Models:
    """The models that are asked for; their loading has begun."""
    sources = options.model or [TINY]
    menu = is_local(options) if options.menu is None else options.menu
    one = functools.partial(load_one, options, threads=torch.get_num_threads())
    if ZERO_GPU:
        return load_here(one, sources)
    return Models(one, sources, switching=menu)


def load_here(load: Callable[..., vlm.Engine], sources: Sequence[str]) -> Models:
    """All of them at once, in this thread: the only one in which ZeroGPU has a GPU."""
    engines = []
    for name, source in named(sources).items():
        engine = load(source, progress=lambda words: None)
        engine.name = name
        engines.append(engine)
    return Models.of(engines)


def load_one(
    options: argparse.Namespace,
    source: str,
    *,
    threads: int,
    progress: Callable[[str], None],
) -> vlm.Engine:
    """One of them; `threads` of torch are there for it, of which it may want fewer."""

    def told(words: str) -> None:
        progress(words)
        if sys.stderr.isatty():
            tell(words)

    torch.set_num_threads(threads)
    engine = vlm.load(
        source,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        progress=told,
    )
    engine.settle_threads()
    return engine


def is_local(options: argparse.Namespace) -> bool:
    """Whether nobody else reaches the page: strangers must not load what they like."""
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    public = options.share or "SPACE_ID" in os.environ
    return not public and host in ("127.0.0.1", "localhost", "::1")


def pair_of(options: argparse.Namespace) -> Callable[[], vlm.Pair] | None:
    """What loads the pair at its first call; the embedded model brings its own."""
    source = options.pair or (None if options.model else TINY_PAIR)
    if source is None:
        return None
    how = {"device": options.device, "dtype": options.dtype}
    return functools.cache(functools.partial(vlm.load_pair, source, **how))


def tell(words: str) -> None:
    """Say what is being done in one line of the terminal, over the last one."""
    print(f"\033[K{words}", end="\r", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="See what PaliGemma sees.")
    parser.add_argument(
        "--model",
        action="append",
        help="a folder or a Hub name, such as google/paligemma2-3b-mix-224, or "
        "NAME@REVISION; give it again for one more to compare with; the embedded model "
        "if left out",
    )
    parser.add_argument(
        "--pair",
        help="a SigLIP or CLIP for the Pairs tab: a folder or a Hub name, such as "
        "google/siglip-base-patch16-224; the embedded model brings its own",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument(
        "--quantize",
        default="auto",
        help="int8 is faster on a CPU and answers nearly the same; auto and none "
        "compute with the weights as they are",
    )
    parser.add_argument(
        "--port", type=int, help="the first free one from 7860 if left out"
    )
    parser.add_argument(
        "--share", action="store_true", help="a public link for 72 hours"
    )
    parser.add_argument(
        "--menu",
        action=argparse.BooleanOptionalAction,
        help="let whoever opens the page load another checkpoint; if left out, only "
        "where the page is for this machine alone",
    )
    parser.add_argument(
        "--mcp", action="store_true", help="be a server of MCP tools as well"
    )
    options = parser.parse_args()
    # A Space has variables, and no command line.
    options.model = options.model or os.environ.get("PALISCOPE_MODEL", "").split()
    options.pair = options.pair or os.environ.get("PALISCOPE_PAIR")
    if ZERO_GPU and options.device == "auto":
        options.device = "cuda"
    return options


if __name__ == "__main__":
    main()
