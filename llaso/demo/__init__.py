"""A web page for a LLaSO model, on this machine or as a Space of the Hub.

`question` asks the model, `timed_transcript` transcribes recordings of any length and `transcript_view` shows that,
`pictures` draws the model's input, `menu` holds tasks and examples, `page` is the page itself. `menu_builder` and
`space` write the folder of a Space; the other modules are copied into it with `llaso.transcription`, so they import
nothing else of ours but `llaso_common`.
"""
