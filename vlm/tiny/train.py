"""One rank's part in making the embedded checkpoint, stage by stage."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from vlm import checkpoint, masks, pair_checkpoint
from vlm.caption import Captions
from vlm.config import PaliGemmaConfig
from vlm.paligemma import PaliGemma
from vlm.tiny import recipe
from vlm.tiny.batches import Lessons
from vlm.tiny.muon import optimizers
from vlm.tiny.processor import processor_files
from vlm.tiny.questions import KINDS, forms
from vlm.tiny.scenes import Stock
from vlm.tiny.sprites import load_sprites
from vlm.tiny.start import carry_over
from vlm.tiny.student import Student
from vlm.tiny.training import Stage
from vlm.tokenizer import Tokenizer


def train(rank: int, ranks: int, port: int, options: argparse.Namespace) -> None:
    """One rank's part in all stages; the first rank writes the checkpoint."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if ranks > 1:
        torch.set_num_threads(1)
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=ranks
        )
    torch.manual_seed(options.seed)
    pieces = SentencePieceProcessor(model_file=str(options.work / "tokenizer.model"))
    tokenizer = Tokenizer.load(options.work, image_token=len(pieces))
    config = recipe.configuration(len(pieces))
    pair = recipe.pair_configuration(config)
    codebook = masks.Masks.load(options.work / masks.FILE)
    student = Student(
        PaliGemma(config),
        pair,
        forms=word_ids(tokenizer),
        entries=codebook.entries,
        loc=tokenizer.first_loc,
        seg=tokenizer.first_seg,
        loss=options.loss,
    )
    if options.start:
        known = carry_over(student.model, student.pair, tokenizer, options.start)
        if rank == 0:
            print(f"{known} of {tokenizer.size} rows come from {options.start}")
    student.to(device)
    lessons = Lessons(
        Stock(load_sprites()),
        tokenizer,
        captions=Captions(pieces, pair.text),
        masks=codebook,
        size=config.vision.image_size,
        grid=config.vision.grid,
    )

    def looking(progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = lessons.scenes(recipe.IMAGES)
        return student.looking(lessons.pictures(scenes).to(device))

    def answering(progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        wide = options.start or progress >= recipe.WIDEN
        chances = recipe.LATER if wide else recipe.FIRST
        foreign = recipe.FOREIGN if wide else 0.0
        scenes = lessons.scenes(recipe.IMAGES)
        asked = [
            lessons.questions(scene, chances, recipe.QUESTIONS, foreign=foreign)
            for scene in scenes
        ]
        pictures = lessons.pictures(scenes).to(device)
        packed = progress < recipe.PACKED
        texts = lessons.texts(scenes, asked, packed=packed)
        return student.answering(pictures, texts.to(device))

    def slow_eye(name: str) -> float:
        return 0.33 if name.startswith(("model.vision", "model.projector")) else 1.0

    for name, share, batch, factor in (
        ("looking", recipe.LOOKING, looking, lambda name: 1.0),
        ("answering", 1 - recipe.LOOKING, answering, slow_eye),
    ):
        stage = Stage(
            name,
            options.minutes * share,
            student,
            batch,
            optimizers(student, factor),
            options.work,
            recipe.IMAGES * ranks,
        )
        # A stage that goes on must not draw the scenes of its beginning again.
        lessons.seed(options.seed, rank, stage.steps)
        stage.run()
    if rank == 0:
        write(student, config, options.work, options.out)


def write(student: Student, config: PaliGemmaConfig, work: Path, out: Path) -> None:
    """The checkpoint, and beside it the pair, which shares the checkpoint's eye."""
    checkpoint.save(student.model, out)
    for name in ("tokenizer.model", masks.FILE):
        shutil.copy(work / name, out / name)
    vision = config.vision
    processor_files(out, vision.image_size, vision.patches, config.image_token)
    folder = out.with_name(f"{out.name}-pair")
    pair_checkpoint.save(student.pair, folder, image_tower=f"../{out.name}")


def word_ids(tokenizer: Tokenizer) -> Tensor:
    """The ids of each kind's words, [kinds, F]; who has fewer words repeats them."""
    words = [[tokenizer.answer_ids(f" {form}") for form in forms(k)] for k in KINDS]
    if any(len(ids) != 1 for kind in words for ids in kind):
        raise ValueError("every form of a kind must be one piece of the vocabulary")
    most = max(map(len, words))
    return torch.tensor(
        [[kind[i % len(kind)][0] for i in range(most)] for kind in words]
    )
