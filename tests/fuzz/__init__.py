"""Fuzz targets for every parser of bytes that others write.

    python -m tests.fuzz --list
    python -m tests.fuzz --target avro_schema --seconds 60      writes an input that fails, and ends with status 1
    make fuzz                                                   runs each target in turn

A target takes any bytes and raises only if something is wrong: an error that its parser does not promise, or two
readers that differ. `corpus/NAME` has inputs that reach deep, and those that once failed. The suite replays them
(tests/unit/test_fuzz_corpus.py). With Atheris installed (`pip install '.[fuzz]'`) the search is guided by coverage of
Python code; without it, inputs are mutated at random.
"""
