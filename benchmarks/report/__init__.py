"""How results are shown: files, tables in the terminal, figures, and pieces of the HTML pages."""
