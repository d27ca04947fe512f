"""The page. Gradio is imported in here, and nowhere else in the library."""
