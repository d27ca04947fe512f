"""The page. Gradio is imported in here, and nowhere else in the library."""

from vlm.ui import stubs

stubs.leave_out()
