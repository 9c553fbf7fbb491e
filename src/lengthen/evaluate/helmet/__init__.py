"""HELMET's seven categories (arXiv 2410.02694), on its own data, with its formats, item counts and metrics."""
