"""PaliGemma in plain PyTorch, and a view of what it looks at.

import vlm
from PIL import Image

engine = vlm.load("assets/tiny")
trace = vlm.Trace()
for step in engine.stream(Image.open("cat.jpg"), "detect cat", tap=trace):
    print(step.text, end="", flush=True)
heat = vlm.probes.image_attention(trace, step.index, layer=-1)
"""

from vlm import anatomy, probes
from vlm.contrastive import Pair, clip_loss, load_pair, siglip_loss
from vlm.engine import Answer, Candidate, Engine, Step, load
from vlm.grounding import Object, mask_tokens, objects
from vlm.many import answers
from vlm.samplers import Temperature, TopK, TopP, greedy
from vlm.tap import Tap
from vlm.trace import Trace
from vlm.video import frames

__all__ = [
    "Answer",
    "Candidate",
    "Engine",
    "Object",
    "Pair",
    "Step",
    "Tap",
    "Temperature",
    "TopK",
    "TopP",
    "Trace",
    "anatomy",
    "answers",
    "clip_loss",
    "frames",
    "greedy",
    "load",
    "load_pair",
    "mask_tokens",
    "objects",
    "probes",
    "siglip_loss",
]
