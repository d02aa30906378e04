"""What a run tells about itself: status, metrics, logs, the run folder and its report.

Models of what is told (`status`, `result`) and the ways to tell it (`http`, `metrics`, `logs`,
`progress`, `report`). Nothing here decides anything, and nothing here carries training data,
weights or credentials.
"""
