"""What projected audio says by itself: its alignment with text by CTC, and decoding that listens to it."""
