"""`llaso serve`: a model behind OpenAI's HTTP interface, many requests answered together.

A request's journey: `middleware` (key, size, time) → `app` (routes) → `protocol` (its shape) → `prompts` (the model's
inputs) → `engine` (the model thread: `batch`, `sampling`, `text`) → `answers` (back in the event loop) → `app`.
"""
