"""Results of benchmarks: files, figures, the page, comparison with earlier ones, numbers in the README."""
