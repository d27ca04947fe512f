"""PaliScope: see what PaliGemma sees. `python app.py --help` shows the options."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import vlm
from vlm.ui import page

HERE = Path(__file__).resolve().parent


def main() -> None:
    options = parse()
    try:
        engine = vlm.load(options.model, device=options.device, dtype=options.dtype)
    except (ValueError, OSError) as error:
        print(f"app.py: {error}", file=sys.stderr)
        sys.exit(2)
    demo = page.build(engine, HERE / "assets" / "examples")
    page.launch(demo, server_port=options.port, share=options.share)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="See what PaliGemma sees.")
    parser.add_argument(
        "--model",
        default=str(HERE / "assets" / "tiny"),
        help="a folder or a Hub name, such as google/paligemma2-3b-mix-224",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument(
        "--port", type=int, help="the first free one from 7860 if left out"
    )
    parser.add_argument(
        "--share", action="store_true", help="a public link for 72 hours"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
