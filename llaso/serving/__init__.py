"""`llaso serve`: OpenAI's HTTP interface with continuous batching.

A request passes `middleware` (key, size, time) → `app` (routes) → `protocol` (validation) → `request_inputs` (the
model's inputs) → `request_queue` → `engine` (the model thread: `batch`, `sampling`, `detokenizer`) → `streams` or
`app` (the response).
"""
