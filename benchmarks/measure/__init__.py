"""How a number is taken: in a process of its own or in turns, behind a correctness gate."""
