"""The paper's comparison of temporal layers, at the scale of the machine at hand, and what it says of each claim.

`study` says what is compared and how, `jobs` trains, samples and measures, `verdicts` draws conclusions from the
numbers, `tables`, `plots` and `page` show them.
"""
