"""What must not be lost: loss on short texts, divergence from the start, short classification, instructions."""
