"""Transcribing recordings of any length, with times.

`recordings` decodes a file in bounded memory, `speech_finders` finds its speech, `pieces` cuts it at pauses,
`transcriber` runs the model on batches of pieces, `partial` keeps what is done, and `transcript_formats` writes text,
JSON, SRT and WebVTT. `live` cuts a recording while it is being made. The command line, the server and the demo use it.
"""
