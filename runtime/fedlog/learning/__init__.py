"""What a model learns from updates: pure numpy, no I/O, no clock.

weights.py is the vocabulary, mean.py the running mean, coverage.py which part of a model an update
speaks of, adaptation.py how a client's other model comes to such a part, strategies/ how a mean
becomes a new model, selection/ who is asked.
"""
