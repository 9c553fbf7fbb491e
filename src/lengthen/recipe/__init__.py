"""Recipes: YAML with a schema, presets, and the reasons of derived values. No torch here."""
