#!/usr/bin/env python3
"""What can be tried of the GPU script in half a minute, without a GPU and without torch."""

import sys
import unittest

sys.dont_write_bytecode = True

PARTS = ["test_table", "test_processes", "test_environment", "test_run"]


def load_tests(loader: unittest.TestLoader, tests: unittest.TestSuite, _pattern: str | None) -> unittest.TestSuite:
    tests.addTests(loader.loadTestsFromName(name) for name in PARTS)
    return tests


if __name__ == "__main__":
    unittest.main()
