// Keep: take a run away as a picture, as data, as a page, or as a link.
