"""The round engine: who is asked, whose update counts, when a round closes, when the job ends.

Pure: no I/O, no clock, no threads. `Engine.step(event, now)` takes one event and returns actions;
the same events at the same times give the same actions. Weights never come here, only offsets.
"""
