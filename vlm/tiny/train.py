"""One rank's part in making the embedded checkpoint, stage by stage."""

from __future__ import annotations

import argparse
import shutil

import torch
import torch.distributed as dist
from sentencepiece import SentencePieceProcessor

from vlm.checkpoint import save
from vlm.paligemma import PaliGemma
from vlm.tiny import recipe
from vlm.tiny.batches import Lessons
from vlm.tiny.muon import optimizers
from vlm.tiny.processor import processor_files
from vlm.tiny.questions import KINDS
from vlm.tiny.scenes import Stock
from vlm.tiny.sprites import load_sprites
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
    file = str(options.work / "tokenizer.model")
    pieces = SentencePieceProcessor(model_file=file).get_piece_size()
    tokenizer = Tokenizer.load(options.work, image_token=pieces)
    config = recipe.configuration(pieces)
    words = [tokenizer.answer_ids(" " + kind) for kind in KINDS]
    if any(len(ids) != 1 for ids in words):
        raise ValueError("every kind must be one piece of the vocabulary")
    student = Student(
        PaliGemma(config), [ids[0] for ids in words], tokenizer.first_loc
    ).to(device)
    lessons = Lessons(
        Stock(load_sprites()),
        tokenizer,
        size=config.vision.image_size,
        grid=config.vision.grid,
    )

    def looking(progress: float):
        scenes = lessons.scenes(recipe.IMAGES)
        return student.looking(lessons.pictures(scenes).to(device))

    def answering(progress: float):
        chances = recipe.FIRST if progress < recipe.WIDEN else recipe.LATER
        scenes = lessons.scenes(recipe.IMAGES)
        asked = [lessons.questions(s, chances, recipe.QUESTIONS) for s in scenes]
        pictures = lessons.pictures(scenes).to(device)
        packed = progress < recipe.PACKED
        texts = lessons.texts(scenes, asked, packed=packed)
        return student.answering(pictures, texts.to(device))

    def slow_eye(name: str) -> float:
        return 0.33 if name.startswith(("model.vision", "model.projector")) else 1.0

    for name, share, batch, factor, pictures in (
        ("looking", recipe.LOOKING, looking, lambda name: 1.0, recipe.IMAGES),
        ("answering", 1 - recipe.LOOKING, answering, slow_eye, recipe.IMAGES),
    ):
        stage = Stage(
            name,
            options.minutes * share,
            student,
            batch,
            optimizers(student, factor),
            options.work,
            pictures * ranks,
        )
        # A stage that goes on must not draw the scenes of its beginning again.
        lessons.seed(options.seed, rank, stage.steps)
        stage.run()
    if rank == 0:
        save(student.model, options.out)
        shutil.copy(file, options.out / "tokenizer.model")
        vision = config.vision
        processor_files(options.out, vision.image_size, vision.patches, pieces)
