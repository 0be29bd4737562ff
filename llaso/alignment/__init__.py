"""Aligns projected audio with text by CTC, and decodes transcripts with CTC and the language model together.

`alignment` reads projected audio without the language model and keeps in a checkpoint's configuration what that needs,
`short_pieces` splits tokens into the pieces that are aligned, `joint_decoding` decodes with both, and `joint_answers`
answers LLaSO-Eval so.
"""

CTC_WEIGHT = 0.3
"""Weight of CTC in joint decoding, by default; ESPnet's recipes for LibriSpeech have the same."""
BEAMS = 4
"""Hypotheses that joint decoding follows, by default."""
