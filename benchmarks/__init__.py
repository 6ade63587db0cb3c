"""The benchmarks, a folder each: ``python benchmarks/<name> --help``."""
