"""What every other package may use: errors, files, manifests, seeds, progress, words, ranks. No torch here."""
