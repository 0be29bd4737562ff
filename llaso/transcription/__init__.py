"""Transcribing recordings of any length, with times.

`recordings` decodes a file in bounded memory, `pieces` cuts it at pauses, `transcriber` runs the model on batches of
pieces, `partial` keeps what is done, and `transcript_formats` writes text, JSON, SRT and WebVTT. The command line, the
server and the demo use the same pieces and formats.
"""
