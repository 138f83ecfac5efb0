"""How results are shown and kept: where they were taken, tables, pages, the look of figures, files all or none."""
