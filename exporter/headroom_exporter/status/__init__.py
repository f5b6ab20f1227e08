"""
What people and scripts read without a Prometheus: the state as one document, and the last 15 minutes.

``history`` remembers, ``document`` says the State as JSON, ``verdict`` in a sentence, ``plan`` beside the
plan; ``terminal`` prints what ``GET /api/v1/state`` answers.
"""
