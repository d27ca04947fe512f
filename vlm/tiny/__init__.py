"""A very small PaliGemma: its pictures, its questions and its vocabulary."""
