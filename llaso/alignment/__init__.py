"""What projected audio says by itself: its alignment with text by CTC, and decoding that listens to it.

`alignment` reads the audio without the language model and keeps what that needs in a checkpoint's configuration,
`short_pieces` splits tokens into the pieces that are aligned, and `joint_decoding` decodes with both.
"""

CTC_WEIGHT = 0.3
"""Weight of what the audio says in joint decoding, by default; ESPnet's recipes for LibriSpeech have the same."""
BEAMS = 4
"""Hypotheses that joint decoding follows, by default."""
