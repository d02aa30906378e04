"""What a model learns from updates: pure numpy, no I/O, no clock.

weights.py is the vocabulary, mean.py the running mean, strategies/ how a mean becomes a new
model, selection/ who is asked.
"""
