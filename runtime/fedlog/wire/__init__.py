"""Bytes: named tensors, chunks and manifests, small records. No I/O, no pickle.

Everything that is decoded here came from somebody else: a decoder returns what it was asked for
or raises a `fedlog.wire.errors.WireError`, whatever the bytes are.
"""
