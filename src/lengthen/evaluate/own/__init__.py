"""Our own tasks, which need no download: JSON pairs, planted facts, re-ranking and many-shot classification.

Named so that nobody takes them for HELMET's: formats are close to its, texts and item counts are not, and scores are
not comparable with published ones.
"""
