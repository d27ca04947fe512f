// Sheet: all layers and heads at once, small.
