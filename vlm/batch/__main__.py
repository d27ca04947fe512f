"""Ask many pictures many things: one table, one sheet to look at.

    python -m vlm.batch PICTURES --prompt "detect cat ; dog" --prompt "caption en"
    accelerate launch -m vlm.batch PICTURES --prompt "caption en" --model NAME

PICTURES is a folder, a text file with a path in each line, or a .jsonl file of
{"image": path, "prompt": text}. A run that was ended, by whatever, goes on where it was
when the same command is given again. `accelerate launch` spreads it over the GPUs of
one or several machines; on CPUs that is `accelerate launch --multi_gpu --num_processes
2 -m vlm.batch ...`, as accelerate itself takes --cpu for one process.

It ends with 0; with 1 if there were pictures that could not be read, which the table
tells of row by row; with 2 if nothing could be done.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

import vlm
from vlm.batch.questions import questions
from vlm.batch.run import How, processes, run
from vlm.batch.sheet import write_sheet
from vlm.batch.table import FORMATS, Table, check_format

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"


def main() -> int:
    options = _options()
    try:
        return _run(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        kept = "The rows that there are stay; the same command goes on behind them."
        print(
            f"There is no memory for {options.batch} questions at once: give a "
            f"smaller --batch. {kept}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\nEnded. The same command goes on from here.", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    check_format(options.table)
    prompts = options.prompt + [
        line.strip()
        for path in options.prompts
        for line in path.read_text("utf-8").splitlines()
        if line.strip()
    ]
    asked = questions(options.images, prompts)
    how = How(options.batch, options.max_tokens, options.masks, options.attention)
    state = processes(options.device)
    table = Table(options.out)
    table.settle(
        {
            "model": options.model,
            "revision": options.revision,
            "dtype": options.dtype,
            "quantize": options.quantize,
            "max_tokens": how.max_tokens,
            "masks": how.masks,
            "attention": how.attention,
        }
    )
    spread = state.num_processes > 1 and options.device == "auto"
    load = partial(
        vlm.load,
        options.model,
        revision=options.revision,
        device=state.device if spread else options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        progress=_tell if state.is_main_process else None,
    )
    rows = run(load, asked, table, how, state=state)
    bad = {row["image"]: row["error"] for row in rows if row["error"] is not None}
    if state.is_main_process:
        table.write(rows, options.table)
        if options.sheet:
            paths = {question.image: question.path for question in asked}
            name = Path(options.model).name if Path(options.model).is_dir() else ""
            write_sheet(options.out, rows, paths, model=name or options.model)
        for image, error in bad.items():
            print(f"{image}: {error}", file=sys.stderr)
        pictures = len({row["image"] for row in rows})
        print(f"{len(rows)} rows about {pictures} pictures in {table.folder}")
    state.wait_for_everyone()
    state.destroy_process_group()
    return int(bool(bad))


def _tell(words: str) -> None:
    print(words, file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vlm.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("images", type=Path, help="a folder, or a file that lists pictures")
    add("--prompt", action="append", default=[], help="asked about each; repeatable")
    add("--prompts", type=Path, action="append", default=[], help="a file of them")
    add("--out", type=Path, default=Path("answers"), help="the folder of the table")
    add("--model", default=str(TINY), help="a folder or a Hub name")
    add("--revision", help="of the model on the Hub")
    add("--batch", type=_positive, default=8, help="questions answered at once")
    add("--max-tokens", type=_positive, default=256, help="of each answer")
    add("--masks", action="store_true", help="with what `segment` drew")
    add("--attention", action="store_true", help="with shares and maps of attention")
    add("--table", choices=FORMATS, default="csv", help="beside answers.jsonl")
    add("--no-sheet", action="store_false", dest="sheet", help="no contact sheet")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--dtype", default="auto", help="float32, bfloat16, float16")
    add("--quantize", default="auto", help="auto, none or int8")
    return parser.parse_args()


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
