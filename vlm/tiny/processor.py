"""Files that tell transformers how to make a checkpoint's inputs.

Nothing here reads them: the vocabulary says what is in it, and an image's size stands
in config.json. `AutoProcessor.from_pretrained` of transformers wants to be told again.
"""

import json
from pathlib import Path

CUBIC = 3  # Pillow's number for it


def processor_files(
    folder: str | Path, image_size: int, patches: int, image_token: int
) -> None:
    """Write them beside `tokenizer.model`.

    Locations and mask codes need no mention, as the vocabulary has them. `<image>` is
    the one token that it lacks, so `image_token` must be the id after its last piece:
    transformers gives no other to a token that is added.
    """
    images = {
        "processor_class": "PaliGemmaProcessor",
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": patches,
        "size": {"height": image_size, "width": image_size},
        "resample": CUBIC,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    image = {"content": "<image>", "special": True}
    text = {
        "tokenizer_class": "GemmaTokenizer",
        "added_tokens_decoder": {str(image_token): image},
    }
    for name, content in (("preprocessor", images), ("tokenizer", text)):
        path = Path(folder) / f"{name}_config.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
