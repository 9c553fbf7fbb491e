"""How long, and how well, a model writes: LonGen, LongBench-Write, and prompts of one's own."""
