"""`python -m fuzz.explore TARGET CORPUS [OPTION…]`: coverage-guided; options are libFuzzer's."""

from __future__ import annotations

import resource
import sys

import atheris

ADDRESS_SPACE_BYTES = 4 * 2**30
"""Mappings, not memory in use, which libFuzzer bounds by -rss_limit_mb."""

with atheris.instrument_imports(include=["fedlog", "fuzz"]):
    from fuzz.targets import TARGETS


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    atheris.Setup([sys.argv[0], *options, corpus], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
