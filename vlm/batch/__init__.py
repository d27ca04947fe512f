"""Many pictures, many prompts, one table: `python -m vlm.batch`."""
