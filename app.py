"""PaliScope: see what PaliGemma sees. `python app.py --help` shows the options."""

import argparse
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch

import vlm
from vlm.ui import page

HERE = Path(__file__).resolve().parent
TINY = str(HERE / "assets" / "tiny")
TINY_PAIR = str(HERE / "assets" / "tiny-pair")


def main() -> None:
    options = parse()
    try:
        if options.mcp and importlib.util.find_spec("mcp") is None:
            raise ValueError('--mcp needs one more package: pip install "gradio[mcp]"')
        engines, pair = load(options), pair_of(options)
        if options.pair:
            pair()  # what is wrong with it is told now
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        sys.exit(2)
    demo = page.build(engines, HERE / "assets" / "examples", pair=pair)
    page.launch(
        demo,
        server_port=options.port,
        share=options.share,
        mcp_server=options.mcp,
    )


def load(options: argparse.Namespace) -> list[vlm.Engine]:
    """An engine for each source; those of equal names are named by their sources."""
    sources = list(dict.fromkeys(options.model or [TINY]))
    engines = [
        vlm.load(
            source,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            progress=tell if sys.stderr.isatty() else None,
        )
        for source in sources
    ]
    names = [engine.name for engine in engines]
    for engine, source in zip(engines, sources):
        if names.count(engine.name) > 1:
            engine.name = source
    torch.set_num_threads(max(engine.threads() for engine in engines))
    return engines


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
        help="a folder or a Hub name, such as google/paligemma2-3b-mix-224; give it "
        "again for one more to compare with; the embedded model if left out",
    )
    parser.add_argument(
        "--pair",
        help="a SigLIP for the Pairs tab: a folder or a Hub name, such as "
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
        "--mcp", action="store_true", help="be a server of MCP tools as well"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
