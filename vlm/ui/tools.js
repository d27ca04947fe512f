// Tools: draw a region on the picture, or paint a part of it out.
